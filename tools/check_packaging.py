#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks packaging/helm and packaging/compose: they render to YAML, every option of a command line exists, what objects name of each other is there,
and the chart's role allows what a registry in Kubernetes does. With `helm` also `helm lint` and its own rendering; without it the few forms of
templates that the chart uses are rendered here.
Usage: check_packaging.py LORIKEET. Ends with 77 where PyYAML is missing."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHART = ROOT / "packaging" / "helm" / "lorikeet"
RELEASE, NAMESPACE = "prod", "llm"

# What src/lk/registry/kubernetes_registry.cpp asks for: (group, resource): verbs, and names but for `create`.
NEEDED = {("", "configmaps"): {"get", "list", "watch", "create", "update"}, ("", "secrets"): {"get", "list", "watch", "create", "update"},
          ("coordination.k8s.io", "leases"): {"get", "create", "update"}, ("discovery.k8s.io", "endpointslices"): {"list", "watch"}}

failures = []


def check(condition, message):
    if not condition:
        failures.append(message)


def render(text: str, values: dict) -> str:
    """range, if, toYaml | nindent, quote, and plain values: all that the chart's templates have."""
    def look_up(path, dot):
        if path == ".":
            return dot
        found = {"Values": values, "Release": {"Name": RELEASE, "Namespace": NAMESPACE}}
        for part in path.strip(".").split("."):
            found = found[part]
        return found

    def value_of(expression, dot):
        first, *filters = [part.strip() for part in expression.split("|")]
        words = first.split()
        value = yaml.safe_dump(look_up(words[1], dot)).rstrip() if words[0] == "toYaml" else look_up(words[0], dot)
        for step in filters:
            name, *arguments = step.split()
            if name == "quote":
                value = '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
            elif name == "nindent":
                pad = " " * int(arguments[0])
                value = "\n" + "\n".join(pad + line for line in value.split("\n"))
            else:
                raise ValueError(f"the filter {name} is not known here")
        return str(value)

    tokens = re.split(r"(\s*\{\{-\s*.*?\}\}|\{\{.*?\}\})", text)

    def run(at, dot, live):
        out = []
        while at < len(tokens):
            token = tokens[at]
            action = re.fullmatch(r"\s*\{\{-?\s*(.*?)\s*-?\}\}", token, re.S) if "{{" in token else None
            at += 1
            if not action:
                out.append(token)
            elif action[1] == "end":
                return at, "".join(out) if live else ""
            elif action[1].startswith(("if ", "range ")):
                kind, path = action[1].split()
                value = look_up(path, dot) if live else None
                rounds = (value or []) if kind == "range" else [dot] if value else []
                body, end = "", None
                for item in rounds or [dot]:
                    end, part = run(at, item, live and bool(rounds))
                    body += part
                at = end
                out.append(body)
            elif live:
                out.append(value_of(action[1], dot))
        return at, "".join(out)

    return run(0, None, True)[1]


def options_of(binary: str, command: str) -> set:
    text = subprocess.run([binary, command, "--help-all"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"--[a-z0-9-]+", text))


def check_command(binary, where, words):
    words = [str(word) for word in words]
    check(words[0] == "lorikeet", f"{where}: the command is {words[0]}")
    known = options_of(binary, words[1])
    for word in words[2:]:
        if word.startswith("--"):
            check(word.split("=")[0] in known, f"{where}: lorikeet {words[1]} has no option {word}")


def check_chart(binary):
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    check(yaml.safe_load((CHART / "Chart.yaml").read_text())["apiVersion"] == "v2", "Chart.yaml: apiVersion")
    helm = shutil.which("helm")
    sets = [values, {**values, "replicas": {**values["replicas"], "nodeSelector": {"disk": "fast"}, "extraArgs": ["--max-running=64"]}}]
    for number, given in enumerate(sets):
        objects = []
        for path in sorted((CHART / "templates").glob("*.yaml")):
            objects += [item for item in yaml.safe_load_all(render(path.read_text(), given)) if item]
        check_objects(binary, objects)
        if helm and number == 0:
            subprocess.run([helm, "lint", "--strict", str(CHART)], check=True)
            theirs = subprocess.run([helm, "template", RELEASE, str(CHART), "--namespace", NAMESPACE], check=True, capture_output=True, text=True).stdout
            key = lambda item: (item["kind"], item["metadata"]["name"])
            check(sorted((i for i in yaml.safe_load_all(theirs) if i), key=key) == sorted(objects, key=key), "helm renders the chart otherwise")
    if not helm:
        print("helm is not installed: the chart was rendered by this script alone")


def check_objects(binary, objects):
    by_kind = {(item["kind"], item["metadata"]["name"]): item for item in objects}
    check(len(by_kind) == len(objects), "two objects of one name")
    for (kind, name), item in by_kind.items():
        check(re.fullmatch(r"[a-z0-9-]{1,63}", name), f"{kind} {name}: no name")
        if kind in ("StatefulSet", "Deployment"):
            pod = item["spec"]["template"]
            labels = pod["metadata"]["labels"]
            check(item["spec"]["selector"]["matchLabels"].items() <= labels.items(), f"{name}: its selector does not select its pods")
            check(("ServiceAccount", pod["spec"]["serviceAccountName"]) in by_kind, f"{name}: no such account")
            volumes = {volume["name"] for volume in pod["spec"]["volumes"]} | {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
            for container in pod["spec"]["containers"]:
                check_command(binary, name, container["command"] + container["args"])
                check({mount["name"] for mount in container["volumeMounts"]} <= volumes, f"{name}: a mount without a volume")
                ports = {port["name"] for port in container["ports"]}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    check(container.get(probe, {"httpGet": {"port": "http"}})["httpGet"]["port"] in ports, f"{name}: {probe} has no port")
                variables = {variable["name"] for variable in container.get("env", [])}
                used = set(re.findall(r"\$\((\w+)\)", " ".join(container["args"])))
                check(used <= variables, f"{name}: {used - variables} are not set")
        if kind == "Service":
            pods = [other["spec"]["template"]["metadata"]["labels"] for (what, _), other in by_kind.items() if what in ("StatefulSet", "Deployment")]
            check(sum(item["spec"]["selector"].items() <= labels.items() for labels in pods) == 1, f"service {name} does not select one kind of pods")
    # The fleet that command lines name is the service of the replicas.
    check(("Service", RELEASE) in by_kind and ("StatefulSet", RELEASE) in by_kind, "the fleet's service has another name than the fleet")
    allowed = {}
    for rule in by_kind[("Role", RELEASE)]["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                allowed.setdefault((group, resource), set()).update(rule["verbs"])
    for what, verbs in NEEDED.items():
        check(verbs <= allowed.get(what, set()), f"the role lacks {verbs - allowed.get(what, set())} on {what[1]}")


def check_compose(binary):
    # Of ${NAME:?why} the value does not matter.
    text = re.sub(r"\$\{(\w+)[^}]*\}", r"\1", (ROOT / "packaging" / "compose" / "compose.yaml").read_text())
    compose = yaml.safe_load(text)
    volumes, secrets = set(compose["volumes"]), set(compose["secrets"])
    for name, service in compose["services"].items():
        check("image" in service, f"compose: {name} has no image")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            check(source.isupper() or source in volumes, f"compose: {name} mounts {source}, which is not there")
        check(set(service.get("secrets", [])) <= secrets, f"compose: {name} has a secret that is not there")
        if service.get("command", [""])[0] == "lorikeet":
            check_command(binary, f"compose: {name}", service["command"])
            for word in service["command"]:
                if word.startswith("--advertise="):
                    check(word == f"--advertise=http://{name}:8000", f"compose: {name} advertises {word}")
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        subprocess.run(["docker", "compose", "-f", str(ROOT / "packaging" / "compose" / "compose.yaml"), "config", "-q"], check=True,
                       env={**os.environ, "MODEL": "/tmp", "ADAPTERS": "/tmp"})
    else:
        print("docker compose is not installed: the compose file was read by this script alone")


if __name__ == "__main__":
    try:
        import yaml
    except ImportError:
        print("skipped: PyYAML is not installed")
        sys.exit(77)
    program = sys.argv[1]
    check_chart(program)
    check_compose(program)
    print("\n".join(failures) or "packaging: fine")
    sys.exit(1 if failures else 0)
