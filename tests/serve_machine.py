"""The server on a made-up machine: python -m tests.serve_machine ROOT"""

import os
import sys
from pathlib import Path

from server import config_reading
from server.serving import run
from server.startup import application, prepare

if __name__ == "__main__":
    settings = config_reading.load(os.environ)
    run(settings, lambda given: application(given, Path(sys.argv[1])), prepare(settings))
