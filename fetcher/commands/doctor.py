"""Is everything well, and if not, what to do."""

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, say
from fetcher.reports.diagnostics import State, examine
from fetcher.settings import FetcherSecrets, Settings
from protos.process.redaction import Redaction

MARKS = {State.OK: "ok     ", State.WARNING: "WARNING", State.FAILED: "FAILED "}


def run_doctor(settings: Settings, *, output: Format) -> int:
    """Print one line a finding as it is found; returns 1 if anything failed."""
    # Texts may come from errors of libraries.
    redact = Redaction(FetcherSecrets.known())
    failed = False
    rows = []
    for finding in examine(settings):
        failed |= finding.state is State.FAILED
        rows.append(
            {
                "subject": finding.subject,
                "state": finding.state,
                "text": redact(finding.text),
                "remedy": finding.remedy,
            }
        )
        if output is Format.TABLE:
            remedy = f"  → {finding.remedy}" if finding.remedy else ""
            say(f"{MARKS[finding.state]}  {finding.subject}: {redact(finding.text)}{remedy}")
    if output is Format.JSON:
        print_json(rows)
    return EXIT_FAILED if failed else EXIT_OK
