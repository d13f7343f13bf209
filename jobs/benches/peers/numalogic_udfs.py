"""numalogic 0.13.2 through its own API: the chain of UDFs from JSON to JSON, `compute` alone, `Trainer.predict`.

Its message carries a whole window. Artifacts come from its own cache over a redis that is in this process. 0.13.2 loads
artifacts with `torch.load` of whole modules, which torch refuses since 2.6 unless the environment allows it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.setdefault("METRICS_ENABLED", "0")
warnings.filterwarnings("ignore")
logging.disable(logging.INFO)

import numpy as np  # noqa: E402
import orjson  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from fakeredis import FakeServer, FakeStrictRedis  # noqa: E402
from numalogic.config import (  # noqa: E402
    LightningTrainerConf,
    ModelInfo,
    NumalogicConf,
    RegistryInfo,
    ScoreConf,
    TrainerConf,
)
from numalogic.models.autoencoder.variants import Conv1dAE, VanillaAE  # noqa: E402
from numalogic.models.threshold import StdDevThreshold  # noqa: E402
from numalogic.registry import RedisRegistry  # noqa: E402
from numalogic.tools.data import StreamingDataset  # noqa: E402
from numalogic.tools.trainer import TimeseriesTrainer  # noqa: E402
from numalogic.tools.types import KeyedArtifact  # noqa: E402
from numalogic.transforms import TanhNorm  # noqa: E402
from numalogic.udfs import InferenceUDF, MLPipelineConf, PostprocessUDF, PreprocessUDF, StreamConf  # noqa: E402
from numalogic.udfs._config import PipelineConf  # noqa: E402
from pynumaflow.mapper import Datum  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from jobs.benches.peers.turns import take_turns  # noqa: E402

_WINDOW, _CHANNELS, _BATCH, _WINDOWS = 64, 32, 64, 1024
_KEYS = ["plant", "pump"]

Call = Callable[[int], object]


def _predict(model: Any, threshold: Any, x: np.ndarray) -> Call:
    """Windows in batches of 64 through the trainer, threshold and normalisation after it."""
    trainer = TimeseriesTrainer(accelerator="cpu", max_epochs=1)

    def run(_: int) -> object:
        loader = DataLoader(StreamingDataset(x[: _WINDOWS + _WINDOW - 1], seq_len=_WINDOW), batch_size=_BATCH)
        error = trainer.predict(model, dataloaders=loader)
        return TanhNorm().transform(threshold.score_samples(error.numpy()))

    return run


def _compute(model: Any, threshold: Any, x: np.ndarray) -> Call:
    """One window through what two UDFs compute for a message, without its JSON."""
    windows = [np.ascontiguousarray(x[i : i + _WINDOW]) for i in range(256)]
    norm, conf = TanhNorm(), ScoreConf()

    def run(i: int) -> object:
        error = InferenceUDF.compute(model, windows[i % len(windows)])
        return PostprocessUDF.compute(threshold, error, postproc_tx=norm, score_conf=conf)

    return run


def _chain(model: Any, threshold: Any, x: np.ndarray) -> Call:
    """One message, with its window, through preprocessing, inference and postprocessing."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    names = [f"c{i:02d}" for i in range(_CHANNELS)]
    redis = FakeStrictRedis(server=FakeServer())
    conf = NumalogicConf(
        model=ModelInfo(name="VanillaAE", conf={"seq_len": _WINDOW, "n_features": _CHANNELS}),
        preprocess=[ModelInfo(name="StandardScaler", stateful=True)],
        trainer=TrainerConf(pltrainer_conf=LightningTrainerConf(max_epochs=1)),
    )
    stream = StreamConf(
        config_id="conf1",
        composite_keys=_KEYS,
        window_size=_WINDOW,
        ml_pipelines={"p1": MLPipelineConf(pipeline_id="p1", metrics=names, numalogic_conf=conf)},
    )
    registry = RegistryInfo(name="RedisRegistry", model_expiry_sec=86400)
    pipeline = PipelineConf(stream_confs={"conf1": stream}, registry_conf=registry)
    udfs = [udf(redis, pl_conf=pipeline) for udf in (PreprocessUDF, InferenceUDF, PostprocessUDF)]
    for udf in udfs:
        udf.register_conf("conf1", stream)
    scaler = make_pipeline(StandardScaler()).fit(x)
    artifacts = {
        "inference": KeyedArtifact(dkeys=["p1", "VanillaAE"], artifact=model),
        "preproc": KeyedArtifact(dkeys=["p1", "StandardScaler"], artifact=scaler),
        "postproc": KeyedArtifact(dkeys=["p1", "StdDevThreshold"], artifact=threshold),
    }
    RedisRegistry(redis).save_multiple(skeys=_KEYS, dict_artifacts=artifacts)
    messages = [_message(names, x, i) for i in range(64)]
    now = datetime.now()

    def run(i: int) -> bytes:
        value = messages[i % len(messages)]
        for udf in udfs:
            out = udf(_KEYS, Datum(keys=_KEYS, value=value, event_time=now, watermark=now))
            value = out[len(out) - 1].value
        return value

    if b"unified_anomaly" not in run(0):
        raise RuntimeError(f"the chain gave no score: {run(0)[:200]!r}")
    return run


def _message(names: list[str], x: np.ndarray, i: int) -> bytes:
    rows = [
        {"timestamp": 1_690_000_000_000 + 60_000 * (i + k), **dict(zip(names, map(float, x[i + k]), strict=True))}
        for k in range(_WINDOW)
    ]
    tags = {"numalogic_opex_tags": {"source": "bench"}}
    return bytes(
        orjson.dumps({"uuid": f"u{i}", "config_id": "conf1", "pipeline_id": "p1", "data": rows, "metadata": tags})
    )


def main() -> None:
    """Make both models, then take turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = np.random.default_rng(7).standard_normal((_WINDOWS + _WINDOW, _CHANNELS)).astype(np.float32)
    dense = VanillaAE(
        seq_len=_WINDOW, n_features=_CHANNELS, encoder_layersizes=(256, 32), decoder_layersizes=(32, 256)
    ).eval()
    conv = Conv1dAE(seq_len=_WINDOW, in_channels=_CHANNELS, enc_channels=(32, 16)).eval()
    errors = np.abs(np.random.default_rng(1).standard_normal((512, _CHANNELS)))
    threshold = StdDevThreshold().fit(errors)
    take_turns(
        {
            "chain": (_chain(dense, threshold, x), 1),
            "predict": (_predict(dense, threshold, x), _WINDOWS),
            "conv_predict": (_predict(conv, threshold, x), _WINDOWS),
            "conv_compute": (_compute(conv, threshold, x), 1),
        }
    )


if __name__ == "__main__":
    main()
