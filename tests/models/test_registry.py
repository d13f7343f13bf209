"""The registry: exact round trips, refusals, and a death between any two steps."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from registry_cases import assert_same, small_bundle
from safetensors.numpy import load, save

from models.manifest import content_id, pack
from models.registry import Registry
from pipeline.bundle import Bundle, Calibration, MemberSpec, SmootherSpec
from pipeline.errors import BundleError

FLOATS = st.floats(width=32)  # NaN and infinities included
NAMES = st.text(min_size=1, max_size=6)
TENSOR_NAMES = st.text("abz_.09é", min_size=1, max_size=6)


@st.composite
def bundles(draw: st.DrawFn) -> Bundle:
    channels = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    groups = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
    params = st.dictionaries(NAMES, st.integers() | FLOATS.filter(np.isfinite) | st.lists(st.integers()), max_size=2)
    members = tuple(
        MemberSpec(
            draw(NAMES), draw(st.integers(1, 64)), draw(st.sampled_from(["last", "window"])), "mse", draw(params)
        )
        for _ in range(draw(st.integers(1, 2)))
    )
    memory = draw(st.integers(1, 3))

    def array(shape: tuple[int, ...]) -> np.ndarray:
        return draw(hnp.arrays(np.float32, shape, elements=FLOATS))

    def calibration() -> Calibration:
        assets = draw(st.lists(NAMES, max_size=2, unique=True))
        k = len(assets) + 1
        measured = (k, len(channels)) if draw(st.booleans()) else (0, 0)
        figures = (array((k,)), array((k,)), array((k, memory)), array((k,)))
        return Calibration(tuple(assets), *figures, 99.9, k, array(measured), array(measured))

    tensors = {}
    for g in range(len(groups)):
        tensors |= {f"g{g}.scaler.{part}": array((len(channels),)) for part in ("loc", "scale")}
        for m in range(len(members)):
            dtype = draw(st.sampled_from([np.float32, np.float64, np.int8, np.int64, np.uint8, np.bool_]))
            shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
            tensors[f"g{g}.m{m}.w.{draw(TENSOR_NAMES)}"] = draw(hnp.arrays(dtype, shape))
    return Bundle(
        id="",
        channels=tuple(channels),
        period_ns=draw(st.integers(0, 2**62)),
        members=members,
        groups=tuple(groups),
        asset_group=draw(st.dictionaries(NAMES, st.integers(0, len(groups) - 1), max_size=3)),
        default_group=draw(st.none() | st.just(0)),
        soft_clip=draw(st.sampled_from([3.0, float("inf")])),
        smoother=SmootherSpec(memory=memory, admit_z=draw(st.sampled_from([5.0, float("inf")]))),
        calibrations={profile: calibration() for profile in draw(st.lists(NAMES, max_size=2, unique=True))},
        stuck_frames=tuple(draw(st.integers(0, 99)) for _ in channels),
        provenance=draw(st.dictionaries(NAMES, st.none() | st.text(), max_size=2)),
        tensors=tensors,
    )


@given(bundle=bundles())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
def test_a_bundle_reads_back_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, bundle: Bundle) -> None:
    registry = Registry(tmp_path_factory.mktemp("registry"))
    added = registry.add(bundle, created_ns=1)
    assert_same(bundle, added)
    assert_same(bundle, registry.load(added.id))


def test_the_id_is_the_content_and_not_the_time_or_the_order_of_tensors(tmp_path: Path) -> None:
    bundle = small_bundle()
    turned = replace(bundle, tensors=dict(reversed(bundle.tensors.items())), id="b000000000000")
    assert pack(bundle, 1).id == pack(turned, 2).id
    assert pack(bundle, 1).id != pack(small_bundle(seed=1), 1).id
    assert pack(bundle, 1).id != pack(replace(bundle, soft_clip=4.0), 1).id


def test_adding_the_same_content_twice_changes_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first = registry.add(small_bundle(), created_ns=1)
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "bundles").rglob("*")}
    again = registry.add(small_bundle(), created_ns=2)
    assert again.id == first.id
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in (tmp_path / "bundles").rglob("*")}
    assert registry.list()[0].created_ns == 1


def test_an_empty_registry_has_no_champion_and_lists_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "not_there")
    assert registry.champion() is None
    assert registry.list() == []
    assert registry.moves() == ()
    assert not (tmp_path / "not_there").exists()


def test_the_list_is_newest_first_and_marks_the_champion(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    old, new = (registry.add(small_bundle(s, {"night": s}), created_ns=s).id for s in (1, 2))
    registry.promote(old, "first")
    entries = registry.list()
    assert [(e.id, e.created_ns, e.champion, e.provenance) for e in entries] == [
        (new, 2, False, {"night": 2}),
        (old, 1, True, {"night": 1}),
    ]
    assert entries[0].summary == "pca w4; 2 channels, 2 assets in 1 group; cpu-float32"


def test_a_damaged_manifest_is_listed_last_with_its_problem(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    good, bad = (registry.add(small_bundle(s), created_ns=s).id for s in (1, 2))
    (tmp_path / "bundles" / bad / "manifest.json").write_text("{")
    entries = registry.list()
    assert [e.id for e in entries] == [good, bad]
    assert entries[0].problem == ""
    assert "not a manifest" in entries[1].problem


def test_rollback_goes_back_one_promotion_at_a_time(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    a, b, c = (registry.add(small_bundle(s), created_ns=s).id for s in (1, 2, 3))
    for bundle_id in (a, b, c):
        registry.promote(bundle_id, "gate passed", at_ns=7)
    assert registry.rollback("storm") == b
    assert registry.champion() == b
    assert registry.rollback() == a
    with pytest.raises(BundleError, match="no earlier champion"):
        registry.rollback()
    assert registry.champion() == a
    registry.promote(c, "again")
    assert registry.rollback() == a
    assert [(m.verb, m.id) for m in registry.moves()] == [
        ("promote", a),
        ("promote", b),
        ("promote", c),
        ("rollback", b),
        ("rollback", a),
        ("promote", c),
        ("rollback", a),
    ]
    assert (registry.moves()[0].at_ns, registry.moves()[3].reason) == (7, "storm")


def test_rollback_without_any_champion_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no earlier champion"):
        Registry(tmp_path).rollback()


def test_promoting_the_champion_again_adds_no_move(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    a = registry.add(small_bundle(), created_ns=1).id
    registry.promote(a, "first")
    registry.promote(a, "a retry of the same command")
    assert len(registry.moves()) == 1


def edit_manifest(folder: Path, change, reseal: bool) -> None:
    """Change a manifest; `reseal` gives it an id and a folder that fit again, as a forger would."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    if reseal:
        document["id"] = content_id(document)
    path.write_text(json.dumps(document))
    if reseal and folder.name != document["id"]:
        folder.rename(folder.parent / document["id"])


def set_weights(field: str, value: object):
    return lambda d: d["weights"].__setitem__(field, value)


FORGERIES = {
    "unknown field": (lambda d: d["bundle"].__setitem__("pickle", "x"), "unknown field"),
    "missing field": (lambda d: d["bundle"].pop("smoother"), "missing required field `smoother`"),
    "wrong type": (lambda d: d["bundle"].__setitem__("period_ns", "minute"), r"Expected `int`.*period_ns"),
    "unknown error kind": (lambda d: d["bundle"]["members"][0].__setitem__("error", "all"), "error"),
    "other format": (lambda d: d.__setitem__("format", 3), "format 3, this program reads up to 2"),
    "window 0": (lambda d: d["bundle"]["members"][0].__setitem__("window", 0), "member 0 has window 0"),
    "a group that is not there": (
        lambda d: d["bundle"]["asset_group"].__setitem__("m01", 4),
        "'m01' is in group 4 of 1",
    ),
    "longer smoother": (lambda d: d["bundle"]["smoother"].__setitem__("memory", 9), r"start is \(2, 4\), not \(2, 9\)"),
    "other channel count": (lambda d: d["bundle"]["channels"].append("x"), "2 stuck_frames for 3 channels"),
    "calibration without arrays": (
        lambda d: d["bundle"]["calibrations"].__setitem__("cuda", {"assets": [], "percentile": 99.5, "rows": 1}),
        "tensor cal.cuda.median is missing",
    ),
    "a format 1 with what format 2 added": (
        lambda d: d.__setitem__("format", 1),
        "'cal.cpu-float32.missing_gain' belongs to no",
    ),
    "arrays without calibration": (lambda d: d["bundle"]["calibrations"].clear(), "'cal.cpu-float32.*' belongs to no"),
    "fewer bytes": (set_weights("bytes", 10), "at most 10 expected"),
    "more bytes": (set_weights("bytes", 10**9), "the manifest says 1000000000 bytes"),
    "other hash": (set_weights("sha256", "0" * 64), "with sha256 .* the manifest says .* with 0000"),
    "other shape": (
        lambda d: d["weights"]["tensors"]["g0.m0.mean"].__setitem__("shape", [2, 4]),
        r"g0.m0.mean is float32 \(8,\), the manifest says float32 \(2, 4\)",
    ),
    "other dtype": (
        lambda d: d["weights"]["tensors"]["g0.m0.mean"].__setitem__("dtype", "int32"),
        r"is float32 \(8,\), the manifest says int32",
    ),
    "one tensor fewer": (
        lambda d: d["weights"]["tensors"].pop("g0.m0.mean"),
        "only one of weights and manifest has: g0.m0.mean",
    ),
}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_manifest_is_refused_even_when_its_id_fits(tmp_path: Path, change, message: str) -> None:
    registry = Registry(tmp_path)
    champion = registry.add(small_bundle(1), created_ns=1).id
    registry.promote(champion, "first")
    folder = tmp_path / "bundles" / registry.add(small_bundle(2), created_ns=2).id
    edit_manifest(folder, change, reseal=True)
    (forged,) = (p.name for p in (tmp_path / "bundles").iterdir() if p.name != champion)
    with pytest.raises(BundleError, match=message) as refusal:
        registry.promote(forged, "please")
    assert str(tmp_path) in str(refusal.value)
    assert registry.champion() == champion
    assert_same(registry.load(champion), small_bundle(1))


def test_a_bundle_of_format_1_is_read_and_takes_errors_as_they_are(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    nothing = np.empty((0, 0), np.float32)
    now = small_bundle()
    as_it_was = replace(now.calibrations["cpu-float32"], missing_shift=nothing, missing_gain=nothing)
    want = replace(now, calibrations={"cpu-float32": as_it_was})
    packed = pack(want, created_ns=1)
    arrays = {name: array for name, array in load(packed.weights).items() if "missing" not in name}
    weights = save(arrays)
    document = {**packed.manifest, "format": 1, "weights": {**packed.manifest["weights"]}}
    document["weights"] |= {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    document["weights"]["tensors"] = {n: packed.manifest["weights"]["tensors"][n] for n in arrays}
    document["id"] = content_id(document)
    folder = tmp_path / "bundles" / registry.add(want, created_ns=1).id
    (folder / "manifest.json").write_text(json.dumps(document))
    (folder / "weights.safetensors").write_bytes(weights)
    folder.rename(folder.parent / document["id"])
    assert_same(registry.load(document["id"]), want)


def test_an_edited_manifest_does_not_fit_its_id(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    folder = tmp_path / "bundles" / registry.add(small_bundle(), created_ns=1).id
    edit_manifest(folder, lambda d: d["bundle"].__setitem__("soft_clip", 9.0), reseal=False)
    with pytest.raises(BundleError, match="it was changed after it was written"):
        registry.load(folder.name)


def test_a_bundle_under_another_bundles_name_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    folder = tmp_path / "bundles" / registry.add(small_bundle(), created_ns=1).id
    folder.rename(folder.parent / "b000000000000")
    with pytest.raises(BundleError, match="in a folder of another name"):
        registry.load("b000000000000")


@pytest.mark.parametrize("at", [0, 9, 200, -1])
def test_a_flipped_bit_in_the_weights_is_refused(tmp_path: Path, at: int) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.add(small_bundle(), created_ns=1).id
    path = tmp_path / "bundles" / bundle_id / "weights.safetensors"
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleError, match="sha256"):
        registry.load(bundle_id)
    with pytest.raises(BundleError, match="sha256"):  # adding it again does not hide the damage
        registry.add(small_bundle(), created_ns=2)


def test_weights_that_are_no_safetensors_file_are_refused_though_hash_and_id_fit(tmp_path: Path) -> None:
    import hashlib

    registry = Registry(tmp_path)
    folder = tmp_path / "bundles" / registry.add(small_bundle(), created_ns=1).id
    planted = b"\x80\x04\x95 not tensors"
    (folder / "weights.safetensors").write_bytes(planted)

    def change(document: dict) -> None:
        document["weights"] |= {"bytes": len(planted), "sha256": hashlib.sha256(planted).hexdigest()}

    edit_manifest(folder, change, reseal=True)
    (forged,) = (p.name for p in (tmp_path / "bundles").iterdir())
    with pytest.raises(BundleError, match="not a safetensors file"):
        registry.load(forged)


@pytest.mark.parametrize("bundle_id", ["", "../x", "b12", "B0123456789ab", "b0123456789ag", "b0123456789ab\n", "/etc"])
def test_what_is_no_id_never_becomes_a_path(tmp_path: Path, bundle_id: str) -> None:
    with pytest.raises(BundleError, match="is not a bundle id"):
        Registry(tmp_path).load(bundle_id)


def test_a_bundle_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"b0123456789ab/manifest.json: cannot be opened: No such file"):
        Registry(tmp_path).load("b0123456789ab")


@pytest.mark.parametrize("part", ["bundles", "folder", "manifest.json", "weights.safetensors"])
def test_symbolic_links_are_refused(tmp_path: Path, part: str) -> None:
    root = tmp_path / "root"
    registry = Registry(root)
    bundle_id = registry.add(small_bundle(), created_ns=1).id
    folder = root / "bundles" / bundle_id
    target = {"bundles": folder.parent, "folder": folder}.get(part, folder / part)
    moved = tmp_path / "outside"
    target.rename(moved)
    target.symlink_to(moved)
    with pytest.raises(BundleError, match="symbolic link"):
        registry.load(bundle_id)


def test_a_linked_champion_pointer_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "root")
    registry.promote(registry.add(small_bundle(), created_ns=1).id, "first")
    (tmp_path / "root" / "champion").rename(tmp_path / "outside")
    (tmp_path / "root" / "champion").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="symbolic link"):
        registry.champion()


def test_a_pipe_in_place_of_the_weights_is_refused_and_not_waited_on(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.add(small_bundle(), created_ns=1).id
    path = tmp_path / "bundles" / bundle_id / "weights.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="not a regular file"):
        registry.load(bundle_id)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"champion":"b0123456789ab","moves":[]}', '{"champion":"../../etc","moves":[]}', '{"champion":1}'],
)
def test_a_damaged_pointer_is_an_error_and_not_no_champion(tmp_path: Path, content: str) -> None:
    (tmp_path / "champion").write_text(content)
    with pytest.raises(BundleError, match="champion"):
        Registry(tmp_path).champion()


def test_a_pointer_that_was_edited_by_hand_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    a, b = (registry.add(small_bundle(s), created_ns=s).id for s in (1, 2))
    registry.promote(a, "first")
    path = tmp_path / "champion"
    path.write_text(path.read_text().replace(f'"champion": "{a}"', f'"champion": "{b}"'))
    with pytest.raises(BundleError, match="is not what its own moves lead to"):
        registry.champion()


CONTRADICTIONS = {
    "one channel twice": ({"channels": ("speed", "speed")}, "channels"),
    "no members": ({"members": ()}, "no members"),
    "unknown default": ({"default_group": 3}, "default group 3"),
    "a tensor of no member": ({"tensors": {"g0.m5.mean": np.zeros(1)}}, "'g0.m5.mean' belongs to no group and member"),
    "a tensor without prefix": ({"tensors": {"mean": np.zeros(1)}}, "'mean' belongs to no"),
    "a member without tensors": (
        {"members": (MemberSpec("pca", 4), MemberSpec("dense", 4))},
        r"no tensors for .*\(0, 1\)",
    ),
    "a scaler of another width": (
        {"channels": ("a", "b", "c"), "stuck_frames": (0, 0, 0)},
        r"loc is \(2,\), not \(3,\)",
    ),
    "provenance with NaN": ({"provenance": {"far": [0.1, float("nan")]}}, r"bundle.provenance.far\[1\] = nan"),
    "provenance with a number as key": ({"provenance": {"by_day": {1: "x"}}}, r"bundle.provenance.by_day = \{1"),
    "provenance with an object": ({"provenance": {"x": object()}}, "bundle.provenance.x"),
}


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_bundle_that_contradicts_itself_is_not_added(tmp_path: Path, change: dict, message: str) -> None:
    bundle = small_bundle()
    if "tensors" in change:
        change = {"tensors": {**bundle.tensors, **change["tensors"]}}
    with pytest.raises(BundleError, match=message):
        Registry(tmp_path).add(replace(bundle, **change), created_ns=1)
    assert Registry(tmp_path).list() == []


def test_tuples_and_numpy_scalars_in_provenance_come_back_as_plain_json(tmp_path: Path) -> None:
    added = Registry(tmp_path).add(small_bundle(provenance={"layers": (128, 16), "rows": np.int64(3)}), created_ns=1)
    assert added.provenance == {"layers": [128, 16], "rows": 3}


def test_two_promotions_at_once_are_both_in_the_moves(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    ids = [Registry(tmp_path).add(small_bundle(s), created_ns=s).id for s in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: Registry(tmp_path).promote(i, "race"), ids))
    assert {m.id for m in Registry(tmp_path).moves()} == set(ids)
    assert len(Registry(tmp_path).moves()) == 6


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    bundle_id = registry.add(replace(small_bundle(), soft_clip=float("inf")), created_ns=5).id
    manifest = registry.manifest(bundle_id)
    assert manifest == json.loads(json.dumps(manifest, allow_nan=False))
    assert manifest["created_ns"] == 5
    assert manifest["bundle"]["soft_clip"] == "inf"
    assert registry.load(bundle_id).soft_clip == float("inf")
