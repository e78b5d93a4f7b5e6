"""The formats of files of deals; apart, because every command line is read with it."""

from enum import StrEnum


class ExportFormat(StrEnum):
    """The format of a file of deals."""

    CSV = "csv"
    XLSX = "xlsx"
    JSONL = "jsonl"
    PARQUET = "parquet"
