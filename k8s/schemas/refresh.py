#!/usr/bin/env python3
"""Writes the JSON schemas beside this file from Rust bindings of custom resources.

The bindings (crates `kcr_keda_sh` and `kcr_monitoring_coreos_com`) are generated from the projects' own
CRDs; their structs are regular enough to be read line by line. What a CRD says beyond types (patterns,
lengths) is not in them. Unknown fields are refused here, where a cluster would drop them silently.

    ./refresh.py FOLDER_OF_kcr_keda_sh FOLDER_OF_kcr_monitoring_coreos_com
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Fields that hold a type of Kubernetes itself: left open here, parsed typed by tests/kubernetes.
KUBERNETES = {("ScaledJobSpec", "jobTargetRef"): "batch/v1 JobSpec"}
RESOURCES = [
    (0, "v1alpha1/scaledjobs.rs", "ScaledJob", "keda.sh/v1alpha1"),
    (0, "v1alpha1/scaledobjects.rs", "ScaledObject", "keda.sh/v1alpha1"),
    (1, "v1/servicemonitors.rs", "ServiceMonitor", "monitoring.coreos.com/v1"),
    (1, "v1/podmonitors.rs", "PodMonitor", "monitoring.coreos.com/v1"),
    (1, "v1/prometheusrules.rs", "PrometheusRule", "monitoring.coreos.com/v1"),
]
SCALARS = {
    "String": {"type": "string"},
    "bool": {"type": "boolean"},
    "i32": {"type": "integer"},
    "i64": {"type": "integer"},
    "f64": {"type": "number"},
    "IntOrString": {"type": ["integer", "string"]},
    "serde_json::Value": {},
}


def parse(text):
    """{name: ("struct", [(field, type, optional)]) or ("enum", [values])}"""
    types, current, rename, optional = {}, None, None, False
    for line in text.splitlines():
        line = line.strip()
        if start := re.match(r"pub (struct|enum) (\w+) \{", line):
            current = (start[1], [])
            types[start[2]] = current
        elif line == "}":
            current = None
        elif current and line.startswith("#[serde("):
            found = re.search(r'rename = "([^"]+)"', line)
            rename = found[1] if found else None
            optional = "skip_serializing_if" in line
        elif current and current[0] == "struct" and line.startswith("pub "):
            name, kind = re.match(r"pub (?:r#)?(\w+): (.+),$", line).groups()
            current[1].append((rename or name, kind, optional or kind.startswith("Option<")))
            rename, optional = None, False
        elif current and current[0] == "enum" and re.match(r"^\w+,$", line):
            current[1].append(rename or line[:-1])
            rename = None
    return types


def schema(types, kind):
    if inner := re.match(r"Option<(.+)>$", kind):
        return schema(types, inner[1])
    if inner := re.match(r"Vec<(.+)>$", kind):
        return {"type": "array", "items": schema(types, inner[1])}
    if inner := re.match(r"BTreeMap<String, (.+)>$", kind):
        return {"type": "object", "additionalProperties": schema(types, inner[1])}
    if kind in SCALARS:
        return SCALARS[kind]
    shape, members = types[kind]
    if shape == "enum":
        return {"type": "string", "enum": members}
    properties = {}
    for name, member, _ in members:
        if what := KUBERNETES.get((kind, name)):
            properties[name] = {"type": "object", "x-typed-as": what}
        else:
            properties[name] = schema(types, member)
    found = {"type": "object", "properties": properties, "additionalProperties": False}
    if required := [name for name, _, optional in members if not optional]:
        found["required"] = required
    return found


def main():
    crates = [Path(argument) for argument in sys.argv[1:3]]
    for crate, file, kind, version in RESOURCES:
        types = parse((crates[crate] / "src" / file).read_text())
        document = {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$comment": f"Written by refresh.py from {crates[crate].name}, {file}",
            "type": "object",
            "properties": {
                "apiVersion": {"const": version},
                "kind": {"const": kind},
                "metadata": {"type": "object", "x-typed-as": "meta/v1 ObjectMeta"},
                "spec": schema(types, kind + "Spec"),
            },
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "additionalProperties": False,
        }
        target = HERE / f"{kind.lower()}.json"
        target.write_text(json.dumps(document, indent=1) + "\n")
        print(target.name, target.stat().st_size)


if __name__ == "__main__":
    main()
