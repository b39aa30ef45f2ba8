"""Barlow Twins: pretraining, pretrained weights and embeddings.

Every public name is imported when it is first touched, so `import barlowtwins` is quick and pulls in no library.
"""

from __future__ import annotations

import importlib
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
        NeighborsConfig as NeighborsConfig,
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
    from barlowtwins.core.errors import (
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
    from barlowtwins.data.check import CheckResult as CheckResult, check as check
    from barlowtwins.data.images import Unreadable as Unreadable, read_image as read_image
    from barlowtwins.data.open import Source as Source, open_source as open_source
    from barlowtwins.data.preprocess import Preprocessing as Preprocessing, preprocess as preprocess
    from barlowtwins.embedding.embed import EmbedResult as EmbedResult, embed as embed
    from barlowtwins.embedding.embedder import Embedder as Embedder
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
    from barlowtwins.loss import (
        BarlowTwinsLoss as BarlowTwinsLoss,
        barlow_twins_loss as barlow_twins_loss,
        cross_correlation as cross_correlation,
    )
    from barlowtwins.models.barlow_twins import BarlowTwins as BarlowTwins
    from barlowtwins.models.resnet import build_backbone as build_backbone
    from barlowtwins.optim import LARS as LARS
    from barlowtwins.pretraining import (
        Callback as Callback,
        PretrainResult as PretrainResult,
        RunState as RunState,
        pretrain as pretrain,
    )
    from barlowtwins.reports.map import MapResult as MapResult, map as map
    from barlowtwins.reports.neighbors import (
        NeighborsResult as NeighborsResult,
        NeighboursResult as NeighboursResult,
        neighbors as neighbors,
        neighbours as neighbours,
    )
    from barlowtwins.reports.report import ReportResult as ReportResult, report as report
    from barlowtwins.reports.sheets import AugmentResult as AugmentResult, augment as augment
    from barlowtwins.shapes_demo import DemoResult as DemoResult, demo as demo
    from barlowtwins.train.trackers import Tracker as Tracker
    from barlowtwins.views.transform import TwinTransform as TwinTransform
    from barlowtwins.zoo.commands import (
        weights_get as weights_get,
        weights_list as weights_list,
        weights_show as weights_show,
        weights_verify as weights_verify,
    )
    from barlowtwins.zoo.conversion import Conversion as Conversion, weights_convert as weights_convert
    from barlowtwins.zoo.detection import detection_backbone as detection_backbone
    from barlowtwins.zoo.export import ExportResult as ExportResult, export as export
    from barlowtwins.zoo.heads import (
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
    "config": (
        "AugmentConfig CheckConfig ClassifyConfig DemoConfig EmbedConfig ExportConfig FinetuneConfig "
        "KNNConfig LinearConfig MapConfig NeighborsConfig NeighboursConfig PretrainConfig ReportConfig SemiConfig "
        "SVMConfig WeightsConvertConfig WeightsGetConfig WeightsListConfig WeightsShowConfig "
        "WeightsVerifyConfig"
    ),
    "core.errors": (
        "BarlowTwinsError CheckpointError ConfigError DataError DownloadError MissingExtraError "
        "OutputError RunLockedError StoppedEarly TrainingError UsageError WeightsError"
    ),
    "data.check": "CheckResult check",
    "data.images": "Unreadable read_image",
    "data.open": "Source open_source",
    "data.preprocess": "Preprocessing preprocess",
    "embedding.embed": "EmbedResult embed",
    "embedding.embedder": "Embedder",
    "evaluate": (
        "EvaluationResult KNNResult Scores SVMResult evaluate_finetune evaluate_knn evaluate_linear "
        "evaluate_semi evaluate_svm fit_head"
    ),
    "evaluate.classify": "ClassifyResult classify",
    "hub": "barlow_twins embedder resnet18 resnet50",
    "loss": "BarlowTwinsLoss barlow_twins_loss cross_correlation",
    "models.barlow_twins": "BarlowTwins",
    "models.resnet": "build_backbone",
    "optim": "LARS",
    "pretraining": "Callback PretrainResult RunState pretrain",
    "reports.map": "MapResult map",
    "reports.neighbors": "NeighborsResult NeighboursResult neighbors neighbours",
    "reports.report": "ReportResult report",
    "reports.sheets": "AugmentResult augment",
    "shapes_demo": "DemoResult demo",
    "train.trackers": "Tracker",
    "views.transform": "TwinTransform",
    "zoo.commands": "weights_get weights_list weights_show weights_verify",
    "zoo.conversion": "Conversion weights_convert",
    "zoo.detection": "detection_backbone",
    "zoo.export": "ExportResult export",
    "zoo.heads": "Classifier Head load_classifier load_head save_head",
    "zoo.weights": "Weights load_backbone load_weights registry",
}
_HOMES = {name: f"barlowtwins.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(set(_HOMES) - {"map"})]  # `import *` must not shadow the built-in map


def __getattr__(name: str) -> Any:
    """Import `name` from where it lives (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'barlowtwins' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "map"]
