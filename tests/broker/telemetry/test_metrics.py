"""What the broker counts for Prometheus."""

from broker.telemetry.metrics import LABEL_VALUES_MAX, OTHER, BoundedLabel


def test_a_label_takes_so_many_values_and_no_more() -> None:
    """Holders that come and go can't make the metrics grow without end."""
    label = BoundedLabel()
    names = [f"holder-{number}" for number in range(LABEL_VALUES_MAX + 50)]
    counted = [label(name) for name in names]

    assert counted[:LABEL_VALUES_MAX] == names[:LABEL_VALUES_MAX]
    assert set(counted[LABEL_VALUES_MAX:]) == {OTHER}
    assert label(names[0]) == names[0]
