"""predictor.json as other programs read it: its published schema, the reader of the documentation, and broken files."""

import copy
import json
import math
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import energies
from pages import Made, results
from sweetspot.errors import SweetspotError
from sweetspot.fit.fit import fit_table
from sweetspot.predict import predictor
from sweetspot.predict.laws import FORMS, LAWS
from sweetspot.table import read as table

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / "workflow/sweetspot/predict/predictor.schema.json").read_text())
CHECK = jsonschema.Draft202012Validator(SCHEMA)


def reader() -> dict[str, Any]:
    """The names that the code block of the documentation defines."""
    page = (ROOT / "docs/predictor.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "reader"}
    exec(block, names)
    return names


def crowded(tmp_path: Path) -> dict[str, Any]:
    """The predictor of a table whose energies show that the KV cache was full."""
    rows = energies.measured("steps-8", batches=energies.BATCHES, capacity=60_000, noise=0.02)
    rows.drop("waves", "in_flight").write_parquet(tmp_path / "crowded.parquet")
    return fit_table(table.read([tmp_path / "crowded.parquet"]))


def few(tmp_path: Path, **columns: Any) -> dict[str, Any]:
    """The predictor of a table that lets only some laws be fitted."""
    rows = results(tmp_path, models=("model",), lengths=(64, 256, 1024), batches=(1, 8)).measurements
    rows.filter(**columns).write_parquet(tmp_path / "few.parquet")
    return fit_table(table.read([tmp_path / "few.parquet"]))


def test_the_schema_is_a_schema_and_every_predictor_obeys_it(simulated: Made, measured: Made, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    one_batch, one_reply = few(tmp_path, batch=8), few(tmp_path, output_tokens=64)
    terms = [fit["terms"] for fits in one_reply["groups"][0]["laws"].values() for fit in fits if "terms" in fit]
    assert any(term["from_prior"] for fit in terms for term in fit.values())
    full = crowded(tmp_path)
    assert full["groups"][0]["kv_capacity"]
    for content in (simulated.results.predictor, measured.results.predictor, one_batch, one_reply, full):
        written = tmp_path / "predictor.json"
        predictor.write(content, written)
        CHECK.validate(json.loads(written.read_text()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["kind"], "something-else"),
        (["schema_version"], 99),
        (["groups"], []),
        (["groups", 0, "model"], None),
        (["groups", 0, "batches"], [0]),
        (["groups", 0, "measured_range", "batch"], [1]),
        (["groups", 0, "laws", "steps-8", 0, "relative_residual_sd"], -1),
        (["groups", 0, "laws", "steps-8", 0, "terms"], {}),
        (["groups", 0, "laws", "steps-8", 0, "terms", "u", "value"], "2"),
        (["groups", 0, "sweet_spots", 0, "status"], "perhaps"),
    ],
)
def test_the_schema_refuses_what_is_no_predictor(simulated: Made, path: list[Any], value: Any) -> None:
    broken = copy.deepcopy(simulated.results.predictor)
    CHECK.validate(broken)
    place = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        CHECK.validate(broken)


def leaves(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON document but its root."""
    items = list(
        content.items() if isinstance(content, dict) else enumerate(content if isinstance(content, list) else ())
    )
    below = [(*path, key) for key, _ in items]
    return below + [deeper for key, value in items for deeper in leaves(value, (*path, key))]


def test_a_changed_file_is_refused_or_said_with_every_prediction(simulated: Made, tmp_path: Path) -> None:
    """Any value replaced or left out: one clear error, or an answer that is finite and says that the file changed."""
    written, rng = tmp_path / "predictor.json", random.Random(1)
    predictor.write(simulated.results.predictor, written)
    whole = json.loads(written.read_text())
    whole["groups"] = whole["groups"][:1]
    model = whole["groups"][0]["model"]
    places = [path for path in leaves(whole) if path[0] in ("groups", "across_models")]
    refused = answered = 0
    for path in rng.sample(places, 250):
        broken = copy.deepcopy(whole)
        place = broken
        for key in path[:-1]:
            place = place[key]
        new = rng.choice([None, True, "x", -1, 0, 1e300, float("nan"), [], {}, "gone"])
        if new == "gone":
            del place[path[-1]]
        else:
            place[path[-1]] = new
        written.write_text(json.dumps(broken))
        try:
            found = predictor.load(written)
            for n, m, batch in ((500, 500, 8), (64, 4096, 64)):
                answer = predictor.predict(found, model, n, m, batch)
                assert math.isfinite(answer.energy_batch_j), path
                assert answer.energy_batch_j > 0, path
                assert any("was changed after" in said for said in answer.warnings), path
                answer.as_text()
            answered += 1
        except SweetspotError:
            refused += 1
    assert refused > 50
    assert answered > 20


def test_what_fit_wrote_says_nothing_of_changes(simulated: Made, tmp_path: Path) -> None:
    predictor.write(simulated.results.predictor, tmp_path / "predictor.json")
    loaded = predictor.load(tmp_path / "predictor.json")
    answer = predictor.predict(loaded, loaded["groups"][0]["model"], 500, 500, 8)
    assert not any("changed" in said for said in answer.warnings)


def test_the_file_says_what_every_term_multiplies(simulated: Made) -> None:
    """Readers need no table of forms: the file's own parts give the library's values."""
    for name, law in simulated.results.predictor["laws"].items():
        for written, term in zip(law["terms"], LAWS[name].terms, strict=True):
            for n, m in ((64, 512), (2048, 7)):
                value = sum(c * n**a * m**b for c, a, b in written["parts"])
                assert value == pytest.approx(FORMS[term.form].value(n, m))


def test_the_reader_says_what_predict_says(simulated: Made, tmp_path: Path) -> None:
    joules, rng = reader()["joules"], random.Random(3)
    by_batch = copy.deepcopy(simulated.results.predictor)
    for group in by_batch["groups"]:
        group["law"] = "paper-6"
    asked = compared = 0
    for fitted in (simulated.results.predictor, by_batch, few(tmp_path, batch=8), crowded(tmp_path)):
        for _ in range(100):
            group = rng.choice(fitted["groups"])
            n, m, batch = (rng.randint(1, top) for top in (3000, 3000, 100))
            batch = rng.choice([batch, *group["batches"]])
            try:
                answer = predictor.predict(fitted, group["model"], n, m, batch)
            except SweetspotError:
                continue
            asked += 1
            *numbers, source, inside = joules(fitted, group["model"], n, m, batch)
            assert numbers[0] == pytest.approx(answer.energy_per_request_j)
            assert source == answer.source
            assert inside == (not answer.extrapolates)
            if inside:
                assert numbers[1] == pytest.approx(answer.energy_per_request_low_j)
                assert numbers[2] == pytest.approx(answer.energy_per_request_high_j)
                compared += 1
    assert compared > 60
    assert asked > 150


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        ("", "not complete JSON"),
        ('{"kind": "sweetspot-pred', "not complete JSON"),
        ("[]", "not a predictor"),
        ('{"schema_version": 1}', "not a predictor"),
        ('{"kind": "sweetspot-predictor", "schema_version": 1, "groups": [{}]}', "schema version 1"),
        ('{"kind": "sweetspot-predictor", "groups": [{}]}', "schema version None"),
        ('{"kind": "sweetspot-predictor", "schema_version": 5, "groups": []}', "damaged"),
        ('{"kind": "sweetspot-predictor", "schema_version": 5, "groups": [{"model": "m"}]}', "damaged"),
        (b"\xff\xfe\x00", "not complete JSON"),
    ],
)
def test_broken_files(tmp_path: Path, content: str | bytes | None, reason: str) -> None:
    path = tmp_path / "predictor.json"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SweetspotError) as caught:
        predictor.load(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
