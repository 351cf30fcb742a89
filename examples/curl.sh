#!/bin/sh
# Post one JPEG: LINESIDE_KEY=ls_... sh curl.sh http://DEVICE:8080 photo.jpg
curl --silent --show-error --fail-with-body --max-time 10 \
  --header "X-API-Key: $LINESIDE_KEY" \
  --header "Content-Type: image/jpeg" \
  --data-binary "@$2" \
  "$1/v1/recognize?camera=st4"
