import json
import stat
from pathlib import Path

from typer.testing import CliRunner

from cli.exit_codes import ExitCode
from cli.holder.committee_files import COMMITTEE_FILE, HOLDER_CONFIG, IDENTITIES, holder_name
from cli.main import app
from security.certificates.credentials import device_id_of
from security.shared_round.keys.holder_keys import HolderSecrets
from security.shared_round.terms.committee import load_committee
from server.config import load_holder_config

NUM_HOLDERS = 3


def rehearse(folder: Path) -> dict[str, str]:
    result = CliRunner().invoke(
        app,
        ["share-holder", "rehearsal", "--out", str(folder), "--holders", str(NUM_HOLDERS),
         "--threshold", "2", "--devices", "2", "--address", "holder-{}:50061",
         "--listen", "0.0.0.0:50061", "--min-members", "4", "--format", "json"],
    )  # fmt: skip
    assert result.exit_code == ExitCode.OK, result.output
    answer: dict[str, str] = json.loads(result.stdout)
    return answer


def test_a_rehearsal_writes_a_committee_whose_holders_own_their_keys(tmp_path: Path) -> None:
    answer = rehearse(tmp_path)
    committee = load_committee((tmp_path / COMMITTEE_FILE).read_bytes())
    assert (committee.threshold, len(committee.holders)) == (2, NUM_HOLDERS)
    assert answer["committee_sha256"] == committee.sha256.hex()
    for index in range(1, NUM_HOLDERS + 1):
        config = load_holder_config(tmp_path / holder_name(index) / HOLDER_CONFIG)
        identity = committee.identity(index)
        assert HolderSecrets.from_json(config.holder.keys.read_bytes()).owns(identity)
        assert stat.S_IMODE(config.holder.keys.stat().st_mode) == 0o600
        assert (config.holder.index, config.policy.min_members) == (index, 4)
        assert config.listen.grpc == "0.0.0.0:50061"
        assert identity.address == f"holder-{index}:50061"
        assert config.holder.device_ca.exists()


def test_a_rehearsal_certifies_its_devices(tmp_path: Path) -> None:
    rehearse(tmp_path)
    found = {
        device_id_of(path.read_bytes())
        for path in (tmp_path / IDENTITIES).glob("device-*.pem")
        if not path.stem.endswith("-key")
    }
    assert found == {"device-0000", "device-0001"}


def test_a_second_rehearsal_changes_nothing(tmp_path: Path) -> None:
    first = rehearse(tmp_path)
    keys = (tmp_path / holder_name(1) / "keys.json").read_bytes()
    assert rehearse(tmp_path) == first
    assert (tmp_path / holder_name(1) / "keys.json").read_bytes() == keys
