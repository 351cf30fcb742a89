"""The server on a made-up machine: python -m tests.support.serve_machine ROOT"""

import os
import sys
from pathlib import Path

from server.config import load as config_reading
from server.process.http_server import run
from server.process.startup import application, preflight

if __name__ == "__main__":
    settings = config_reading.load(os.environ)
    models = preflight(settings)
    run(settings, lambda given: application(given, Path(sys.argv[1]), models=models))
