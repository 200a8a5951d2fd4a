"""`manage appraise`: in this process, where pytest-django refuses every database access, and as a program."""

import io
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from attestation.engine.baseline import baseline
from attestation.engine.boot import eventlog
from attestation.engine.boot.components import observe
from attestation.engine.boot.replay import replay
from attestation.engine.reference_json import to_json
from attestation.engine.tpm.algorithms import HashAlg
from attestation.management.commands.appraise import Command
from tests.attestation.recorded import EVIDENCE, GOOGLE, HOST_A, HOST_B, Entry, entries
from tests.attestation.wire import dumped

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"verdict", "findings", "secure_boot", "pcrs", "event_count", "authorities"}
BY_NAME = {entry.name: entry for entry in entries()}
A = BY_NAME["a-secureboot-on/eventlog.bin"]
LOGS = [entry for entry in entries() if entry.facts["kind"] != "quote"]
WITH_QUOTES = [
    (entry, quote) for entry in entries() for quote in entry.quotes if entry.name != "trustee/tpm_evidence/quote.attest"
]
CA = EVIDENCE / "captured/ca"


@dataclass(frozen=True)
class Answer:
    exit_code: int
    text: str
    errors: str

    @property
    def json(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.text)
        assert answer.keys() == KEYS
        for finding in answer["findings"]:
            assert finding.keys() == {"code", "pcr", "event", "message", "remedy"}
        return answer

    @property
    def codes(self) -> set[str]:
        return {finding["code"] for finding in self.json["findings"]}


def appraised(*words: str | Path) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command(Command(), *map(str, words), stdout=out, stderr=err)
    except SystemExit as exc:
        assert isinstance(exc.code, int)
        code = exc.code
    return Answer(code, out.getvalue(), err.getvalue())


def in_json(*words: str | Path) -> Answer:
    return appraised(*words, "--json")


def quote_options(entry: Entry, quote: dict[str, Any]) -> list[str | Path]:
    files = [("--quote", "attest"), ("--signature", "sig"), ("--ak", "ak")]
    options: list[str | Path] = ["--nonce", quote["nonce"]]
    for option, name in files:
        options += [option, entry.folder / quote[name]]
    return options


def of_a(*words: str | Path) -> Answer:
    return in_json("--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), *words)


@pytest.mark.parametrize("entry", LOGS, ids=[entry.name for entry in LOGS])
def test_every_recorded_log_gives_what_its_manifest_states(entry: Entry) -> None:
    answer = in_json("--event-log", entry.folder / entry.name)
    found, expected = answer.json, entry.facts
    if expected["expect"] == "malformed" or (found["event_count"] == 0 and "malformed" in expected.get("tolerate", [])):
        assert answer.exit_code == 2 and found["verdict"] == "failed" and found["secure_boot"] is None
        assert answer.codes <= {"log_malformed", "log_missing"} and found["pcrs"] == {}
        return
    assert answer.exit_code == 0 and "not_proven" in answer.codes and found["verdict"] == "warning"
    assert found["event_count"] == expected["facts"]["events"]
    if expected["expect"] != "replays":
        return  # edited: alone, it says what it likes
    for bank, values in found["pcrs"].items():
        assert values == {index: expected["pcrs"][bank][index] for index in values}
    by_log = {bank: len(values) for bank, values in found["pcrs"].items()}
    if "quote" not in expected["pcrs_source"] and expected["kind"] == "eventlog":
        assert by_log == {bank: len(values) for bank, values in expected["pcrs"].items() if values}
    # A log that is too short to tell (its note says so) is asked for no more than its silence.
    assert found["secure_boot"] in (expected["secure_boot"], None)
    assert found["secure_boot"] == expected["secure_boot"] or "too incomplete" in expected["notes"]
    stated = [(each["pcr"], each.get("cert_sha256", "")) for each in expected["facts"]["authorities_pcr7_or_rtmr"]]
    assert [(each["pcr"], each["cert_sha256"]) for each in found["authorities"]] == stated


@pytest.mark.parametrize(
    ("entry", "quote"), WITH_QUOTES, ids=[f"{entry.name}:{quote['attest']}" for entry, quote in WITH_QUOTES]
)
def test_every_recorded_attestation_gives_what_its_manifest_states(
    entry: Entry, quote: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "pcrs").write_text(json.dumps(entry.facts["pcrs"]))
    options = ["--event-log", entry.folder / entry.name, *quote_options(entry, quote), "--pcrs", tmp_path / "pcrs"]
    answer = in_json(*options)
    if entry.facts["expect"].startswith("rejected"):
        pcr = int(entry.facts["expect"].rpartition(" ")[2])
        assert answer.exit_code == 1 and answer.json["secure_boot"] is None and answer.json["authorities"] == []
        assert [each["pcr"] for each in answer.json["findings"] if each["code"] == "log_does_not_replay"] == [pcr]
        return
    assert answer.exit_code == 0 and answer.json["verdict"] in ("passed", "warning")
    assert answer.json["secure_boot"] == entry.facts["secure_boot"] and "not_proven" not in answer.codes
    for bank, pcrs in quote["pcr_select"].items():
        assert {index: answer.json["pcrs"][bank][str(index)] for index in pcrs} == {
            index: entry.facts["pcrs"][bank][str(index)] for index in pcrs
        }
    wrong = options.copy()
    wrong[wrong.index("--nonce") + 1] = "00" + quote["nonce"]
    refused = in_json(*wrong)
    assert refused.exit_code == 1 and "nonce_mismatch" in refused.codes and refused.json["secure_boot"] is None


def test_a_quote_without_a_log(tmp_path: Path) -> None:
    entry = BY_NAME["trustee/tpm_evidence/quote.attest"]
    answer = in_json(*quote_options(entry, entry.quotes[0]))
    assert answer.exit_code == 0 and answer.codes == {"key_unrestricted", "ak_not_activated", "log_missing"}
    (tmp_path / "pcrs").write_bytes(dumped(entry.pcrs))
    with_values = in_json(*quote_options(entry, entry.quotes[0]), "--pcrs", tmp_path / "pcrs")
    assert with_values.json["pcrs"] == entry.facts["pcrs"]


@pytest.mark.parametrize("form", ["dump", "text", "json", "concatenated", "none"])
def test_pcr_values_come_in_many_forms(form: str, tmp_path: Path) -> None:
    selected = A.quotes[0]["pcr_select"]["sha256"]
    forms = {
        "dump": dumped({HashAlg.SHA256: A.pcrs[HashAlg.SHA256]}),
        "text": (HOST_A / "pcrread.yaml").read_bytes(),
        "json": json.dumps(A.facts["pcrs"]).encode(),
        "concatenated": b"".join(A.pcrs[HashAlg.SHA256][pcr] for pcr in selected),
    }
    path = tmp_path / "pcrs"
    path.write_bytes(forms.get(form, b""))
    options: list[str | Path] = [] if form == "none" else ["--pcrs", path]
    answer = of_a(*options)
    assert (answer.exit_code, answer.json["verdict"], answer.json["secure_boot"]) == (0, "passed", True)


def test_the_makers_certificate_leads_to_an_anchor(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((CA / "intermediate.pem").read_bytes() + (CA / "root.pem").read_bytes())
    certificate = HOST_A / "ek-cert-rsa.der"
    assert of_a("--ek-cert", certificate, "--trust-anchor", both).exit_code == 0
    anchors: list[str | Path] = ["--trust-anchor", CA / "root.pem", "--trust-anchor", CA / "intermediate.pem"]
    assert of_a("--ek-cert", certificate, *anchors).exit_code == 0
    wrong: list[list[str | Path]] = [
        [],
        ["--trust-anchor", CA / "root.pem"],
        ["--trust-anchor", GOOGLE / "tpm_ek_root_1.cer"],
    ]
    for others in wrong:
        answer = of_a("--ek-cert", certificate, *others)
        assert answer.exit_code == 1 and "ek_untrusted" in answer.codes and answer.json["secure_boot"] is None


def test_a_certificate_for_the_attestation_key_takes_the_place_of_an_activation() -> None:
    entry = BY_NAME["go-tpm-tools/gce-cos-85-no-nonce/eventlog.bin"]
    options = ["--event-log", GOOGLE / "eventlog.bin", *quote_options(entry, entry.quotes[1])]
    certificate: list[str | Path] = [
        "--ek-cert",
        GOOGLE / "ak_cert.der",
        "--trust-anchor",
        GOOGLE / "tpm_ek_intermediate_2.crt",
    ]
    assert "ak_not_activated" in in_json(*options).codes
    assert "ak_not_activated" not in in_json(*options, *certificate).codes


def test_reference_values_decide(tmp_path: Path) -> None:
    log = eventlog.parse((HOST_A / "eventlog.bin").read_bytes())
    quoted = {pcr: A.pcrs[HashAlg.SHA256][pcr] for pcr in range(10)}
    reference = tmp_path / "reference.json"
    reference.write_bytes(to_json(baseline(observe(replay(log, bank=HashAlg.SHA256, quoted=quoted)))))
    assert of_a("--reference", reference).json["verdict"] == "passed"
    other = in_json("--event-log", HOST_B / "eventlog.bin", "--reference", reference)
    assert other.exit_code == 1 and {"secure_boot_off", "setup_mode"} <= other.codes


def test_a_list_of_measured_files(tmp_path: Path) -> None:
    answer = of_a("--ima", HOST_A / "ima_ascii.txt")
    assert answer.exit_code == 0 and "not_proven" in answer.codes  # PCR 10 was not among the quoted ones
    (tmp_path / "ima").write_bytes(b"10 nonsense\n")
    assert of_a("--ima", tmp_path / "ima").exit_code == 2
    assert "ima_malformed" in of_a("--ima", tmp_path / "ima").codes


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--event-log", "/nonexistent/log"],
        ["--event-log", "/"],
        ["--event-log", HOST_A / "eventlog.bin", "--nonce", "00"],
        ["--event-log", HOST_A / "eventlog.bin", "--pcrs", HOST_A / "pcrread.yaml"],
        ["--event-log", HOST_A / "eventlog.bin", "--trust-anchor", CA / "root.pem"],
        ["--event-log", HOST_A / "eventlog.bin", "--reference", HOST_A / "pcrread.yaml"],
        ["--event-log", HOST_A / "eventlog.bin", "--ek-cert", HOST_A / "ak.pub"],
        ["--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), "--nonce", "xyz"],
        ["--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), "--quote", HOST_A / "ak.pub"],
        ["--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), "--signature", HOST_A / "ak.pub"],
        ["--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), "--ak", HOST_A / "quote.sig"],
        ["--event-log", HOST_A / "eventlog.bin", *quote_options(A, A.quotes[0]), "--pcrs", HOST_A / "ak.pub"],
    ],
)
def test_what_cannot_be_used_is_told_as_one_object(words: list[str | Path]) -> None:
    answer = in_json(*words)
    assert answer.exit_code == 2 and answer.json["verdict"] == "failed" and answer.errors == ""
    assert answer.codes <= {"invalid_arguments", "file_unreadable", "evidence_malformed"} and len(answer.codes) == 1
    told = appraised(*words)
    assert told.exit_code == 2 and told.text == "" and f"({answer.json['findings'][0]['code']})" in told.errors


def test_the_same_for_people() -> None:
    answer = appraised("--event-log", HOST_B / "eventlog.bin")
    assert answer.exit_code == 0
    lines = answer.text.splitlines()
    assert lines[:3] == ["verdict      warning", "secure boot  off", "events       44"]
    assert any(line.startswith("sha256    7  ") for line in lines)
    assert any(line.startswith("warning: ") and "(secure_boot_off)" in line for line in lines)


@pytest.mark.slow
def test_as_a_program_without_a_database(tmp_path: Path) -> None:
    """Everything as an operator has it: another folder, relative paths, no settings of the console."""
    command = [str(ROOT / "bartizan"), "manage", "appraise"]
    log = tmp_path / "eventlog.bin"
    log.write_bytes((HOST_A / "eventlog.bin").read_bytes())

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True, check=False)

    fine = run("--event-log", "eventlog.bin", "--json")
    assert (fine.returncode, fine.stderr) == (0, "") and json.loads(fine.stdout)["secure_boot"] is True
    log.write_bytes(b"no log")
    malformed = run("--event-log", "eventlog.bin", "--json")
    assert malformed.returncode == 2 and json.loads(malformed.stdout)["findings"][0]["code"] == "log_malformed"
    usage = run("--evnt-log", "eventlog.bin", "--json")
    assert usage.returncode == 2 and json.loads(usage.stdout)["findings"][0]["code"] == "invalid_arguments"
    assert list(tmp_path.iterdir()) == [log]
