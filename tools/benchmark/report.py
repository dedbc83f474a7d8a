"""Tables of results, as Markdown or JSON, with the machine and the command of each."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from benchmark.machine import environment
from trunchier.files import whole_file


class Table(NamedTuple):
    """`columns` is {key: heading}, `rows` are dicts, `notes` are sentences without a full stop."""

    title: str
    columns: dict[str, str]
    rows: list[dict]
    notes: list[str] = []


class Report:
    """Tables with their commands; each added table rewrites the files `out` and `json_out`."""

    def __init__(self, device: str, out: Path | None = None, json_out: Path | None = None):
        self.out, self.json_out = out, json_out
        self.environment = environment(device)
        self.tables = []

    def add(self, command: str, table: Table) -> None:
        self.tables.append((command, table))
        for path, make in ((self.out, self.as_markdown), (self.json_out, self.as_json)):
            if path is not None:
                with whole_file(path) as part:
                    part.write_text(make())

    def as_markdown(self) -> str:
        parts = [''.join(f'- {key}: {value}\n' for key, value in self.environment.items())]
        for command, table in self.tables:
            parts.append(f'## {table.title}\n\n    python tools/benchmark {command}\n')
            used = {key for row in table.rows for key, value in row.items() if value is not None}
            columns = {key: heading for key, heading in table.columns.items() if key in used}
            if table.rows:
                parts.append(markdown(columns, table.rows))
            parts += [f'{note}.\n' for note in table.notes]
        return '\n'.join(parts)

    def as_json(self) -> str:
        tables = [
            dict(command=command, title=table.title, rows=table.rows, notes=table.notes)
            for command, table in self.tables
        ]
        return json.dumps(dict(environment=self.environment, tables=tables), indent=1) + '\n'


def markdown(columns: dict[str, str], rows: list[dict]) -> str:
    """A Markdown table; numbers have three significant digits, absent values are empty."""
    lines = ['| ' + ' | '.join(columns.values()) + ' |', '|' + '---|' * len(columns)]
    lines += ['| ' + ' | '.join(_cell(row.get(key)) for key in columns) + ' |' for row in rows]
    return '\n'.join(lines) + '\n'


def _cell(value):
    if value is None:
        return ''
    if isinstance(value, float):
        if value != value:
            return '?'
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'
    return str(value)


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f'  {text}', file=sys.stderr)
