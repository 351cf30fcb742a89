# mypy: disable-error-code=import-not-found
"""MLServer: mlserver start FOLDER. Open Inference Protocol v2 over REST, one base64 BYTES tensor,
a parallel worker a core. PYTHONPATH names the folder of net.py."""

import json

from mlserver import MLModel
from mlserver.codecs import Base64Codec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse
from net import Net


class Classify(MLModel):
    async def load(self) -> bool:
        self.net = Net()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = Base64Codec.decode_input(payload.inputs[0])
        top3 = [json.dumps(self.net(image)) for image in images]
        outputs = [StringCodec.encode_output("top3", top3)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
