"""The public names, and where each lives; `vankit/__init__.py` loads them from there on first use."""

from .cli.demo import demo as demo
from .data.images import ImageError as ImageError
from .deploy.convert import convert as convert
from .deploy.export import export as export
from .errors import UserError as UserError
from .explanation import Explanation as Explanation
from .explanation import explain as explain
from .inspection import inspect as inspect
from .inspection.report import Inspection as Inspection
from .models.fold import fold as fold
from .models.hub import DownloadError as DownloadError
from .models.lka import LargeKernelAttention as LargeKernelAttention
from .models.van import VAN as VAN
from .models.weights import Checkpoint as Checkpoint
from .models.weights import load_checkpoint as load_checkpoint
from .models.weights import read_checkpoint as read_checkpoint
from .models.weights import save_checkpoint as save_checkpoint
from .ops import large_kernel_attention as large_kernel_attention
from .prediction.jobs import predict as predict
from .prediction.labels import Label as Label
from .prediction.labels import Prediction as Prediction
from .prediction.labels import Predictor as Predictor
from .prediction.labels import inference_model as inference_model
from .prediction.scenes import DensePredictor as DensePredictor
from .serving import serve as serve
from .study.complexity import complexity as complexity
from .study.timing import bench as bench
from .tasks.multilabel import MultiLabelReport as MultiLabelReport
from .tasks.results import Detections as Detections
from .tasks.results import Failure as Failure
from .tasks.results import PanopticMap as PanopticMap
from .tasks.results import SemanticMap as SemanticMap
from .training.recipes import DenseConfig as DenseConfig
from .training.recipes import TrainConfig as TrainConfig
from .training.recipes import recipe as recipe
from .training.run import train as train
from .validation import ClassificationReport as ClassificationReport
from .validation import DenseReport as DenseReport
from .validation import validate as validate

__version__: str
