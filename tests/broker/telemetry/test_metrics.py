"""What the broker counts for Prometheus."""

from broker.telemetry.metrics import LABEL_IDLE_S, LABEL_VALUES_MAX, OTHER, BoundedLabel


def test_a_label_takes_so_many_values_and_no_more() -> None:
    """Holders that come and go can't make the metrics grow without end."""
    label = BoundedLabel(lambda _: None)
    names = [f"holder-{number}" for number in range(LABEL_VALUES_MAX + 50)]
    counted = [label(name) for name in names]

    assert counted[:LABEL_VALUES_MAX] == names[:LABEL_VALUES_MAX]
    assert set(counted[LABEL_VALUES_MAX:]) == {OTHER}
    assert label(names[0]) == names[0]


def test_holders_long_gone_make_room() -> None:
    """After an hour of silence a value goes with its series; a new one takes its place."""
    now_s = 0.0
    gone: list[str] = []
    label = BoundedLabel(gone.append, lambda: now_s)
    old = [f"old-{number}" for number in range(LABEL_VALUES_MAX)]
    for name in old:
        label(name)
    crowded = label("new")
    now_s = LABEL_IDLE_S - 1
    label(old[7])
    now_s = LABEL_IDLE_S
    after = label("new")

    assert (crowded, after) == (OTHER, "new")
    assert gone == old[:7] + old[8:]
    assert label(old[7]) == old[7]
