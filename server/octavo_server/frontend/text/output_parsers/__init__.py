"""Tool calls and thoughts in what a model writes: parsed while it comes, and forced where a request demands it."""

from octavo_server.frontend.text.output_parsers.machine import Without
from octavo_server.frontend.text.output_parsers.output_format import OutputFormat, check_names, choose_format
from octavo_server.frontend.text.output_parsers.parsed import CallDelta, OutputParser, Parsed, Tool

__all__ = ["CallDelta", "OutputFormat", "OutputParser", "Parsed", "Tool", "Without", "check_names", "choose_format"]
