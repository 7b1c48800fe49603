"""Checks JSON reports against the schema: check_reports.py SCHEMA REPORT..."""

import json
import sys

import jsonschema


def main() -> None:
    schema_path, *reports = sys.argv[1:]
    with open(schema_path, encoding="utf-8") as file:
        schema = json.load(file)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    failed = 0
    for path in reports:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        for error in validator.iter_errors(report):
            # The part that fits best says more than "fits none".
            best = jsonschema.exceptions.best_match([error]) or error
            place = "/".join(map(str, best.absolute_path))
            print(f"{path}: {place}: {best.message[:300]}")
            failed += 1
    print(f"{len(reports)} reports checked")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
