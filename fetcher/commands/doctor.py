"""The diagnosis: all findings, and their remedies."""

from fetcher.commands.output import EXIT_FAILED, EXIT_OK, Format, print_json, print_line
from fetcher.reports.diagnostics import State, examine
from fetcher.settings import FetcherSecrets, Settings
from protos.process.redaction import Redaction

MARKS = {State.OK: "ok     ", State.WARNING: "WARNING", State.FAILED: "FAILED "}


def run_doctor(settings: Settings, *, output: Format) -> int:
    """Prints one line per finding at once; returns 1 if anything failed."""
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
            print_line(
                f"{MARKS[finding.state]}  {finding.subject}: {redact(finding.text)}{remedy}"
            )
    if output is Format.JSON:
        print_json(rows)
    return EXIT_FAILED if failed else EXIT_OK
