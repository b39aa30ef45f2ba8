"""One frozen dataclass per command: its fields are the flags, the help text, the checkpoint's record.

`tyro` turns each class into a command line: a field is a flag, the string under it is the help, the default is the
default. `None` means "let the recipe or the data decide"; what was decided is printed and recorded. Types check
themselves (`rules`); settings of several commands are in `shared`.
"""

from __future__ import annotations

from barlowtwins.config.embedding import CheckConfig, EmbedConfig, NeighborsConfig, NeighboursConfig
from barlowtwins.config.evaluation import (
    ClassifyConfig,
    FinetuneConfig,
    KNNConfig,
    LinearConfig,
    SemiConfig,
    SVMConfig,
)
from barlowtwins.config.pretraining import DemoConfig, PretrainConfig
from barlowtwins.config.registry import (
    ExportConfig,
    WeightsConvertConfig,
    WeightsGetConfig,
    WeightsListConfig,
    WeightsShowConfig,
    WeightsVerifyConfig,
)
from barlowtwins.config.reports import AugmentConfig, MapConfig, ReportConfig

__all__ = [
    "AugmentConfig",
    "CheckConfig",
    "ClassifyConfig",
    "DemoConfig",
    "EmbedConfig",
    "ExportConfig",
    "FinetuneConfig",
    "KNNConfig",
    "LinearConfig",
    "MapConfig",
    "NeighborsConfig",
    "NeighboursConfig",
    "PretrainConfig",
    "ReportConfig",
    "SVMConfig",
    "SemiConfig",
    "WeightsConvertConfig",
    "WeightsGetConfig",
    "WeightsListConfig",
    "WeightsShowConfig",
    "WeightsVerifyConfig",
]
