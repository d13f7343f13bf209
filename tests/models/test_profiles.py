import pytest
import torch
from naive_engine import make_bundle, make_rows

from models.engine import open_engine
from models.profiles import FALLBACK, Profile, all_profiles, by_name, choose
from pipeline.bundle import MemberSpec
from pipeline.errors import ConfigError

torch.set_num_threads(1)

MEMBERS = [
    MemberSpec("pca", 6),
    MemberSpec("dense", 4, params={"hidden": (9,), "latent": 3}),
    MemberSpec("conv", 5, "window"),
]


@pytest.fixture
def gpus(monkeypatch):
    def there_are(count):
        monkeypatch.setattr("models.profiles._has_driver", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return there_are


def calibrated(*names):
    return make_bundle(MEMBERS, calibrations=dict.fromkeys(names))


def test_every_profile_has_a_name_of_its_own_and_is_found_by_it():
    names = [profile.name for profile in all_profiles()]
    assert len(set(names)) == len(names)
    assert {"cpu-float32", "cpu-float32-latency", "cuda-float32", "cuda-tf32"} <= set(names)
    assert [by_name(name) for name in names] == list(all_profiles())
    assert FALLBACK.name == "cpu-float32"


def test_the_number_of_a_device_is_no_part_of_the_name():
    assert Profile("cuda:3", "tf32").name == "cuda-tf32"


def test_an_unknown_profile_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"train\.profiles.*cpu-float32-latency"):
        by_name("cpu-float64")


def test_auto_takes_cuda_where_it_is_and_the_bundle_was_calibrated_for_it(gpus):
    gpus(1)
    assert choose("auto", bundle=calibrated("cpu-float32", "cuda-float32")).name == "cuda-float32"
    assert choose("auto", bundle=calibrated("cpu-float32")).name == "cpu-float32"
    assert choose("auto", "tf32", bundle=calibrated("cpu-float32", "cuda-float32")).name == "cpu-float32"
    assert choose("auto", "tf32").name == "cuda-tf32"
    gpus(0)
    assert choose("auto", bundle=calibrated("cpu-float32", "cuda-float32")).name == "cpu-float32"
    assert choose("auto", "tf32").name == "cpu-float32"


def test_auto_takes_the_cpu_for_what_only_a_cpu_can(gpus):
    gpus(1)
    assert choose("auto", "float32", "latency").name == "cpu-float32-latency"


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (("tpu",), "run.device"),
        (("cpu:1",), "run.device"),
        (("cuda:x",), "run.device"),
        (("cuda:",), "run.device"),
        (("cuda:2",), "run.device"),
        (("cpu", "tf32"), "run.precision"),
        (("cuda", "int8"), "run.precision"),
        (("cuda", "float32", "latency"), "run.priority"),
    ],
)
def test_what_does_not_go_together_is_refused_with_its_key(gpus, asked, key):
    gpus(2)
    with pytest.raises(ConfigError, match=key):
        choose(*asked)


def pushed(bundle, rows, *asked):
    engine = open_engine(bundle, "cpu", *asked)
    slots = engine.allocate([f"a{i}" for i in range(4)])
    return engine, engine.push([(rows, slots[rows.asset])])[0]


def test_the_latency_profile_scores_rows_one_by_one_and_says_the_same_within_rounding():
    bundle, rows = make_bundle(MEMBERS), make_rows(300, 5, assets=4, missing=0.02)
    engine, got = pushed(bundle, rows, "float32", "latency")
    _, want = pushed(bundle, rows)
    assert engine.profile == "cpu-float32-latency"
    assert {shape for scorers in engine._scorers for s in scorers for shape in s.shapes} == {1}
    torch.testing.assert_close(
        torch.from_numpy(got.score), torch.from_numpy(want.score), rtol=1e-4, atol=0, equal_nan=True
    )
