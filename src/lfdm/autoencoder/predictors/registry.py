"""The motion predictors by the `type` of their settings."""

from lfdm.autoencoder.predictors.dense import DenseMotionPredictor
from lfdm.autoencoder.predictors.predictor import MotionPredictor
from lfdm.autoencoder.predictors.regions import RegionMotionPredictor
from lfdm.config.predictors import PredictorConfig

PREDICTORS: dict[str, type[MotionPredictor]] = {
    "dense": DenseMotionPredictor,
    "regions": RegionMotionPredictor,
}


def build_predictor(config: PredictorConfig, *, stride: int, corners: bool, padding_mode: str) -> MotionPredictor:
    """Build the predictor that `config` describes; the other arguments are those of `MotionPredictor`."""
    return PREDICTORS[config.type](config, stride=stride, corners=corners, padding_mode=padding_mode)
