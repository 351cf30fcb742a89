"""Post one JPEG: LINESIDE_KEY=ls_... python post_urllib.py http://DEVICE:8080 photo.jpg"""

import json
import os
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

url, photo = sys.argv[1:]
request = Request(
    f"{url}/v1/recognize?camera=st4",
    Path(photo).read_bytes(),
    {"Content-Type": "image/jpeg", "X-API-Key": os.environ.get("LINESIDE_KEY", "")},
)
try:
    with urlopen(request, timeout=10) as response:
        answer = json.load(response)
except HTTPError as error:
    sys.exit(f"{error.code}: {json.load(error)['error']['message']}")
for each in answer["predictions"]:
    print(each["label"], each["probability"])
print("verdict:", answer["verdict"])
