"""The manifests of `deploy/kuberay`: true to the schemas of Kubernetes, to each other, and to the code they start."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml

from jobs.cli.app import app
from jobs.door import LOOPBACK_HOSTS, OPEN
from jobs.proxy import CALLBACK, CALLBACK_VARIABLE
from jobs.serve_settings import DEFAULT_PORT

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kuberay"
DOCUMENTS: list[dict[str, Any]] = [
    document
    for path in sorted(FOLDER.glob("*.yaml"))
    if path.name != "kustomization.yaml"
    for document in yaml.safe_load_all(path.read_text())
]
NAMES = [f"{document['kind']}-{document['metadata']['name']}" for document in DOCUMENTS]
KUBERNETES = ("1.29", "1.37")
"""The oldest and the newest release that are looked at."""


def the(kind: str, name: str) -> dict[str, Any]:
    (found,) = [d for d in DOCUMENTS if (d["kind"], d["metadata"]["name"]) == (kind, name)]
    return found


CLUSTER = the("RayCluster", "codistill")["spec"]
SERVICE = the("Deployment", "codistill")["spec"]["template"]
STORE = the("StatefulSet", "codistill-postgres")["spec"]["template"]
HEAD, WORKERS = CLUSTER["headGroupSpec"], CLUSTER["workerGroupSpecs"]
PODS = {
    "head": HEAD["template"],
    **{group["groupName"]: group["template"] for group in WORKERS},
    "service": SERVICE,
    "store": STORE,
}
RAY_PODS = [name for name in PODS if name != "store"]


def container(template: dict[str, Any]) -> dict[str, Any]:
    (found,) = template["spec"]["containers"]
    return found


# ---------------------------------------------------------------- schemas


def closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
GROUP = {"rayStartParams": TEXTS, "template": {"type": "object"}, "labels": TEXTS, "resources": TEXTS}
RAY_CLUSTER = closed(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": {"type": "object"},
        "spec": closed(
            {
                "rayVersion": {"type": "string"},
                "authOptions": closed({"mode": {"enum": ["disabled", "token"]}}, ["mode"]),
                "headGroupSpec": closed(
                    {**GROUP, "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}}, ["template"]
                ),
                "workerGroupSpecs": {
                    "type": "array",
                    "items": closed(
                        {
                            **GROUP,
                            "groupName": {"type": "string"},
                            "replicas": COUNT,
                            "minReplicas": COUNT,
                            "maxReplicas": COUNT,
                        },
                        ["groupName", "minReplicas", "maxReplicas", "template"],
                    ),
                },
            },
            ["headGroupSpec"],
        ),
    },
    ["apiVersion", "kind", "metadata", "spec"],
)
"""The fields that are used here of the operator's own schema (KubeRay 1.7)."""


def as_deployment(template: dict[str, Any]) -> dict[str, Any]:
    """A pod's template within a kind whose schema Kubernetes has."""
    spec = {"selector": {"matchLabels": template["metadata"]["labels"]}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "any"}, "spec": spec}


@pytest.mark.parametrize("release", KUBERNETES)
@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_manifests_keep_to_the_schemas(document: dict[str, Any], release: str) -> None:
    if document["kind"] == "RayCluster":
        jsonschema.validate(document, RAY_CLUSTER)
        for template in (HEAD["template"], *(group["template"] for group in WORKERS)):
            kubernetes_validate.validate(as_deployment(template), release, strict=True)
    else:
        kubernetes_validate.validate(document, release, strict=True)


def test_the_kustomization_has_every_file() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == sorted(path.name for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
    assert {document["metadata"].get("namespace", "codistill") for document in DOCUMENTS} == {"codistill"}


# ---------------------------------------------------------------- each other


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)?", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {None: 1, "Mi": 2**20, "Gi": 2**30}[unit]


def store_bytes(name: str) -> int:
    if name == "service":
        return int(dict(option.split("=") for option in COMMANDS[0] if "=" in option)["--object-store-memory"])
    params = HEAD["rayStartParams"] if name == "head" else WORKERS[0]["rayStartParams"]
    return int(params["object-store-memory"])


def command_lines() -> list[list[str]]:
    (script,) = container(SERVICE)["args"]
    return [shlex.split(line) for line in script.replace("\\\n", " ").splitlines()]


COMMANDS = command_lines()


@pytest.mark.parametrize("name", RAY_PODS)
def test_the_object_store_fits_shared_memory_and_that_the_memory(name: str) -> None:
    volumes = {volume["name"]: volume for volume in PODS[name]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(PODS[name])["volumeMounts"]}
    shared = volumes[mounts["/dev/shm"]]["emptyDir"]
    assert shared["medium"] == "Memory"
    assert store_bytes(name) < bytes_of(shared["sizeLimit"])
    limit = bytes_of(container(PODS[name])["resources"]["limits"]["memory"])
    assert bytes_of(shared["sizeLimit"]) <= limit / 2
    assert volumes[mounts["/storage"]]["persistentVolumeClaim"]["claimName"] == "codistill-storage"
    assert the("PersistentVolumeClaim", "codistill-storage")["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.mark.parametrize("name", PODS)
def test_no_pod_is_root_or_may_ask_kubernetes(name: str) -> None:
    spec, security = PODS[name]["spec"], PODS[name]["spec"]["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert (security["runAsNonRoot"], security["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    own = container(PODS[name])["securityContext"]
    assert own == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    if name != "store":
        assert f"--uid {security['runAsUser']} codistill" in (ROOT / "Dockerfile").read_text()


def selected(selector: dict[str, Any]) -> set[str]:
    """The pods of ours that a selector means."""

    def fits(labels: dict[str, str]) -> bool:
        exact = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
        among = [e for e in selector.get("matchExpressions", []) if labels.get(e["key"]) not in e["values"]]
        return exact and not among

    return {name for name, template in PODS.items() if fits(template["metadata"]["labels"])}


def allowed() -> set[tuple[str, str, int | None]]:
    """(from, to, port) of all traffic among our pods that both of its ends permit; None: any port."""
    ends: dict[str, set[tuple[str, str, int | None]]] = {"Ingress": set(), "Egress": set()}
    for policy in (d["spec"] for d in DOCUMENTS if d["kind"] == "NetworkPolicy"):
        for here in selected(policy["podSelector"]):
            for rule in policy.get("ingress", ()):
                for there, port in _peers(rule, "from"):
                    ends["Ingress"].add((there, here, port))
            for rule in policy.get("egress", ()):
                for there, port in _peers(rule, "to"):
                    ends["Egress"].add((here, there, port))
    return ends["Ingress"] & ends["Egress"]


def _peers(rule: dict[str, Any], key: str) -> Iterator[tuple[str, int | None]]:
    for peer in rule[key]:
        for there in selected(peer["podSelector"]) if "podSelector" in peer else ():
            for port in rule.get("ports", [{"port": None}]):
                yield there, port["port"]


def test_only_rays_nodes_talk_to_each_other_and_only_the_service_to_the_store() -> None:
    ray = {(a, b, None) for a in RAY_PODS for b in RAY_PODS}
    assert allowed() == ray | {("service", "store", 5432)}
    everything = the("NetworkPolicy", "nothing-else")["spec"]
    assert selected(everything["podSelector"]) == set(PODS)
    assert sorted(everything["policyTypes"]) == ["Egress", "Ingress"]
    assert everything.keys() == {"podSelector", "policyTypes"}, "it allows nothing"


def test_services_select_the_pods_they_name_and_their_ports() -> None:
    for name, pod, port in (("codistill", "service", DEFAULT_PORT), ("codistill-postgres", "store", 5432)):
        spec = the("Service", name)["spec"]
        assert selected({"matchLabels": spec["selector"]}) == {pod}
        (offered,) = spec["ports"]
        named = {p["name"]: p["containerPort"] for p in container(PODS[pod])["ports"]}
        assert (offered["port"], named[offered["targetPort"]]) == (port, port)
        outside = the("NetworkPolicy", "users")["spec"]
    assert selected(outside["podSelector"]) == {"service"}
    assert outside["ingress"][0]["ports"] == [{"protocol": "TCP", "port": DEFAULT_PORT}]


# ---------------------------------------------------------------- the code


def test_the_service_is_a_node_of_the_cluster_and_then_serves_on_it() -> None:
    scripts = pytest.importorskip("ray.scripts.scripts")
    join, serve = COMMANDS
    assert (join[:2], serve[:3]) == (["ray", "start"], ["exec", "codistill", "serve"])
    scripts.start.make_context("start", join[2:], resilient_parsing=False)
    command: Any = typer.main.get_command(app)
    given = command.commands["serve"].make_context("serve", serve[3:]).params
    joined = dict(option.removeprefix("--").split("=") for option in join[2:])
    assert joined["address"] == given["on"] == "codistill-head-svc:6379"
    assert (joined["num-cpus"], joined["num-gpus"]) == ("0", "0")
    assert (given["host"], given["port"], str(given["storage"])) == ("0.0.0.0", DEFAULT_PORT, "/storage")
    assert "codistill" in given["host_name"]
    assert the("Deployment", "codistill")["spec"]["strategy"]["type"] == "Recreate"
    for group in (HEAD, *WORKERS):
        options = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
        scripts.start.make_context("start", ["--head", *options])
    assert HEAD["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes_pass_the_door(probe: str) -> None:
    asked = container(SERVICE)[probe]["httpGet"]
    assert asked["path"] in OPEN
    (host,) = [header["value"] for header in asked["httpHeaders"] if header["name"] == "Host"]
    assert host in LOOPBACK_HOSTS
    assert asked["port"] in {port["name"] for port in container(SERVICE)["ports"]}


def test_secrets_are_those_that_the_readme_makes_and_the_operators() -> None:
    text = (FOLDER / "README.md").read_text()
    made = dict(re.findall(r"create secret generic (\S+) --from-\w+=(\w+)", text))
    used = {
        (ref["name"], ref["key"])
        for template in PODS.values()
        for variable in container(template).get("env", ())
        if (ref := variable.get("valueFrom", {}).get("secretKeyRef"))
    }
    assert used == {("codistill-database", made["codistill-database"]), ("codistill", "auth_token")}
    environment = {v["name"]: v.get("value") for v in container(SERVICE)["env"]}
    assert environment["RAY_AUTH_MODE"] == CLUSTER["authOptions"]["mode"] == "token"
    (volume,) = [v for v in SERVICE["spec"]["volumes"] if "secret" in v]
    (mount,) = [m for m in container(SERVICE)["volumeMounts"] if m["name"] == volume["name"]]
    name = volume["secret"]["secretName"]
    assert environment["CODISTILL_TOKENS_FILE"] == f"{mount['mountPath']}/{made[name]}"


def test_the_image_has_what_the_manifests_count_on() -> None:
    image, pins = (ROOT / "Dockerfile").read_text(), (ROOT / "constraints.txt").read_text()
    assert f"ray=={CLUSTER['rayVersion']}\n" in pins
    assert f"{CALLBACK_VARIABLE}={CALLBACK}" in image
    assert "requirements/run.lock" in image
    assert "\npsycopg==" in (ROOT / "requirements/run.lock").read_text(), "the store is PostgreSQL"
    assert "wget" in image, "the operator's probes call it"
    images = {container(PODS[name])["image"] for name in RAY_PODS}
    assert (
        images
        == {"codistill"}
        == {i["name"] for i in yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["images"]}
    )
