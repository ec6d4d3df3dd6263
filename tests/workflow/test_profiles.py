"""The shipped profiles, read as Snakemake reads them."""

import yaml

from checkouts import ROOT


def test_a_retry_on_slurm_asks_for_no_more_time_than_the_first_attempt() -> None:
    """A partition with a limit would refuse it, and the promised retry would never run."""
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    assert profile["retries"] >= 1
    wanted = [profile["default-resources"], *profile["set-resources"].values()]
    for resources in wanted:
        assert isinstance(resources["runtime"], int), resources
