"""Barlow Twins: pretraining, pretrained weights and embeddings.

Every public name is imported when it is first touched, so `import barlowtwins` is quick and pulls in no library. Some
functions have the name of the module they live in (`barlowtwins.pretrain`, `barlowtwins.embed`): as an attribute of
the package such a name is always the function; `from barlowtwins.pretrain import ...` reaches into the module.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from barlowtwins.version import __version__ as __version__

if TYPE_CHECKING:  # the same names again, for type checkers and editors; a test compares the two
    from barlowtwins.config import (
        AugmentConfig as AugmentConfig,
        CheckConfig as CheckConfig,
        ClassifyConfig as ClassifyConfig,
        DemoConfig as DemoConfig,
        EmbedConfig as EmbedConfig,
        ExportConfig as ExportConfig,
        FinetuneConfig as FinetuneConfig,
        KNNConfig as KNNConfig,
        LinearConfig as LinearConfig,
        MapConfig as MapConfig,
        NeighboursConfig as NeighboursConfig,
        PretrainConfig as PretrainConfig,
        ReportConfig as ReportConfig,
        SemiConfig as SemiConfig,
        SVMConfig as SVMConfig,
        WeightsConvertConfig as WeightsConvertConfig,
        WeightsGetConfig as WeightsGetConfig,
        WeightsListConfig as WeightsListConfig,
        WeightsShowConfig as WeightsShowConfig,
        WeightsVerifyConfig as WeightsVerifyConfig,
    )
    from barlowtwins.data.check import CheckResult as CheckResult, check as check
    from barlowtwins.data.images import Unreadable as Unreadable, read_image as read_image
    from barlowtwins.data.open import Source as Source, open_source as open_source
    from barlowtwins.data.preprocess import Preprocessing as Preprocessing, preprocess as preprocess
    from barlowtwins.demo import DemoResult as DemoResult, demo as demo
    from barlowtwins.detection import detection_backbone as detection_backbone
    from barlowtwins.embedding.embed import EmbedResult as EmbedResult, embed as embed
    from barlowtwins.embedding.embedder import Embedder as Embedder
    from barlowtwins.errors import (
        BarlowTwinsError as BarlowTwinsError,
        CheckpointError as CheckpointError,
        ConfigError as ConfigError,
        DataError as DataError,
        DownloadError as DownloadError,
        MissingExtraError as MissingExtraError,
        OutputError as OutputError,
        RunLockedError as RunLockedError,
        StoppedEarly as StoppedEarly,
        TrainingError as TrainingError,
        UsageError as UsageError,
        WeightsError as WeightsError,
    )
    from barlowtwins.evaluate import (
        EvaluationResult as EvaluationResult,
        KNNResult as KNNResult,
        Scores as Scores,
        SVMResult as SVMResult,
        evaluate_finetune as evaluate_finetune,
        evaluate_knn as evaluate_knn,
        evaluate_linear as evaluate_linear,
        evaluate_semi as evaluate_semi,
        evaluate_svm as evaluate_svm,
        fit_head as fit_head,
    )
    from barlowtwins.evaluate.classify import ClassifyResult as ClassifyResult, classify as classify
    from barlowtwins.hub import (
        barlow_twins as barlow_twins,
        embedder as embedder,
        resnet18 as resnet18,
        resnet50 as resnet50,
    )
    from barlowtwins.looking.map import MapResult as MapResult, map as map
    from barlowtwins.looking.neighbours import NeighboursResult as NeighboursResult, neighbours as neighbours
    from barlowtwins.looking.report import ReportResult as ReportResult, report as report
    from barlowtwins.looking.sheets import AugmentResult as AugmentResult, augment as augment
    from barlowtwins.loss import (
        BarlowTwinsLoss as BarlowTwinsLoss,
        barlow_twins_loss as barlow_twins_loss,
        cross_correlation as cross_correlation,
    )
    from barlowtwins.model import BarlowTwins as BarlowTwins, build_backbone as build_backbone
    from barlowtwins.optim import LARS as LARS
    from barlowtwins.pretrain import PretrainResult as PretrainResult, pretrain as pretrain
    from barlowtwins.training.tracking import Tracker as Tracker
    from barlowtwins.views.augment import TwinTransform as TwinTransform
    from barlowtwins.zoo.commands import (
        weights_get as weights_get,
        weights_list as weights_list,
        weights_show as weights_show,
        weights_verify as weights_verify,
    )
    from barlowtwins.zoo.convert import Conversion as Conversion, weights_convert as weights_convert
    from barlowtwins.zoo.export import ExportResult as ExportResult, export as export
    from barlowtwins.zoo.head import (
        Classifier as Classifier,
        Head as Head,
        load_classifier as load_classifier,
        load_head as load_head,
        save_head as save_head,
    )
    from barlowtwins.zoo.weights import (
        Weights as Weights,
        load_backbone as load_backbone,
        load_weights as load_weights,
        registry as registry,
    )

_NAMES = {
    "views.augment": "TwinTransform",
    "data.check": "CheckResult check",
    "evaluate.classify": "ClassifyResult classify",
    "config": "AugmentConfig CheckConfig ClassifyConfig DemoConfig EmbedConfig ExportConfig FinetuneConfig KNNConfig "
    "LinearConfig MapConfig NeighboursConfig PretrainConfig ReportConfig SVMConfig SemiConfig WeightsConvertConfig "
    "WeightsGetConfig WeightsListConfig WeightsShowConfig WeightsVerifyConfig",
    "zoo.convert": "Conversion weights_convert",
    "data.open": "Source open_source",
    "demo": "DemoResult demo",
    "embedding.embed": "EmbedResult embed",
    "embedding.embedder": "Embedder",
    "errors": "BarlowTwinsError CheckpointError ConfigError DataError DownloadError MissingExtraError OutputError "
    "RunLockedError StoppedEarly TrainingError UsageError WeightsError",
    "zoo.export": "ExportResult export",
    "detection": "detection_backbone",
    "evaluate": "EvaluationResult KNNResult SVMResult Scores evaluate_finetune evaluate_knn evaluate_linear "
    "evaluate_semi evaluate_svm fit_head",
    "zoo.head": "Classifier Head load_classifier load_head save_head",
    "hub": "barlow_twins embedder resnet18 resnet50",
    "data.images": "Unreadable read_image",
    "loss": "BarlowTwinsLoss barlow_twins_loss cross_correlation",
    "looking.map": "MapResult map",
    "model": "BarlowTwins build_backbone",
    "looking.neighbours": "NeighboursResult neighbours",
    "optim": "LARS",
    "data.preprocess": "Preprocessing preprocess",
    "pretrain": "PretrainResult pretrain",
    "looking.report": "ReportResult report",
    "looking.sheets": "AugmentResult augment",
    "training.tracking": "Tracker",
    "zoo.weights": "Weights load_backbone load_weights registry",
    "zoo.commands": "weights_get weights_list weights_show weights_verify",
}
_HOMES = {name: f"barlowtwins.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOMES)]


class _Package(types.ModuleType):
    """Importing barlowtwins.pretrain would put the module in the place of the function; here it does not."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import `name` from where it lives (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'barlowtwins' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
