"""Flags rows of sessions that ran on another board, or on a board whose configuration had changed."""

import polars as pl

from sweetspot.sensors.board import changes

_FLAGS = {True: "other_board", False: "machine_changed"}


def flag_changes(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Flag rows of sessions whose machine differs from the first session's on as many boards; also returns warnings.

    Column `session` identifies sessions and sorts in the order they began; without it nothing is flagged. Another GPU
    of the same name is `other_board`: boards differ by up to 5 %. Another driver, VBIOS, power limit or ECC mode is
    `machine_changed`.
    """
    if "session" not in frame.columns:
        return frame, []
    first: dict[tuple[object, object], dict[str, object]] = {}
    flagged: dict[str, list[str]] = {flag: [] for flag in _FLAGS.values()}
    messages = []
    sessions = frame.filter(pl.col("session").is_not_null()).unique("session", keep="first").sort("session")
    for row in sessions.iter_rows(named=True):
        before = first.setdefault((row["gpu"], row.get("parallelism")), row)
        for change in changes(before, row):
            flag = _FLAGS[change.startswith("gpu_uuid")]
            flagged[flag].append(row["session"])
            messages.append(
                f"session {row['session']} differs from {before['session']}: {change}; its rows are flagged {flag}"
            )
    for flag, names in flagged.items():
        unflagged = pl.col("session").is_in(names) & ~pl.col("flags").str.split(";").list.contains(flag)
        joined = pl.concat_str(pl.col("flags").replace("", None), pl.lit(flag), separator=";", ignore_nulls=True)
        frame = frame.with_columns(pl.when(unflagged).then(joined).otherwise("flags").alias("flags"))
    return frame, messages
