"""Post one JPEG: LINESIDE_KEY=ls_... python post_requests.py http://DEVICE:8080 photo.jpg

A session keeps its connection, so use one for all frames of a camera.
"""

import os
import sys
from pathlib import Path

import requests

url, photo = sys.argv[1:]
with requests.Session() as session:
    session.headers["X-API-Key"] = os.environ.get("LINESIDE_KEY", "")
    response = session.post(
        f"{url}/v1/recognize",
        data=Path(photo).read_bytes(),
        params={"camera": "st4", "part": "A-1093"},
        headers={"Content-Type": "image/jpeg"},
        timeout=10,
    )
    answer = response.json()
if not response.ok:
    sys.exit(f"{response.status_code}: {answer['error']['message']}")
for each in answer["predictions"]:
    print(each["label"], each["probability"])
print("verdict:", answer["verdict"])
