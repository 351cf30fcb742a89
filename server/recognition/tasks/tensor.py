"""tensor: plain numbers in, plain numbers out; with labels, their classes too."""

from server.errors import BundleError
from server.recognition.interpreter import InterpreterPool
from server.recognition.manifest import Bundle
from server.recognition.tasks import TaskName
from server.recognition.tasks.classify import Classify, ClassReader
from server.values.wording import counted

DTYPES = frozenset(
    {"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"}
    | {"float16", "float32", "float64"}
)


class TensorTask(Classify):
    """Models of any tensors of numbers. If a bundle has labels, they name the last dimension of the
    model's first output, and a row of it is classified."""

    name: TaskName = "tensor"
    takes_images = False
    needs_labels = False
    answer_type = None

    def make_reader(self, bundle: Bundle, pool: InterpreterPool) -> ClassReader:
        """Raises BundleError if a dimension other than the batch is open, or if labels and the
        first output do not belong together."""
        for spec in (*pool.inputs, *pool.outputs):
            if spec.dtype not in DTYPES:
                raise BundleError(f"{bundle.folder}: the tensor {spec.name} is not of numbers")
        for spec in pool.inputs:
            if any(size < 0 for size in spec.shape[1:]):
                raise BundleError(
                    f"{bundle.folder}: the input {spec.name} takes {list(spec.shape)}, where only"
                    " the first dimension may be open"
                )
        classes = pool.outputs[0].shape[-1:]
        if bundle.labels and classes != (len(bundle.labels),):
            raise BundleError(
                f"{bundle.folder}: labels.txt has {counted(len(bundle.labels), 'label')} but the"
                f" model's first output is {list(pool.outputs[0].shape)}"
            )
        return ClassReader(bundle, pool)


TASK = TensorTask()
