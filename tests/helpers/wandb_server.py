"""A stand-in for the server of Weights & Biases: what the real `wandb` client asks for, on this machine.

It keeps what a user of W&B would look at (runs with their history by line, summary, configuration and state;
artifacts with versions that are unique by digest; alerts), over being stopped and started again on the same port.
Written down from what wandb 0.31 sends; an operation that is not known is answered with an error and kept in
`unknown`.
"""

import base64
import gzip
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "birders"
KEY = "0123456789abcdef0123456789abcdef01234567"
Values = dict[str, Any]


@dataclass
class Artifact:
    """A version of an artifact; `files` are those of its manifest, by path, once it is committed."""

    id: str
    type: str
    name: str
    digest: str
    metadata: Values
    aliases: list[str]
    made_by: str
    state: str = "PENDING"
    version: int | None = None
    manifest: Values = field(default_factory=dict)
    used_by: list[str] = field(default_factory=list)


@dataclass
class WandbRun:
    """A run as its page shows it."""

    id: str
    project: str
    config: Values = field(default_factory=dict)
    summary: Values = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    about: Values = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    preempting: bool = False

    @property
    def history(self) -> list[Values]:
        """The rows, in the order of their lines."""
        return [json.loads(line) for line in self.streams.get("wandb-history.jsonl", [])]

    @property
    def events(self) -> list[Values]:
        """The system metrics."""
        return [json.loads(line) for line in self.streams.get("wandb-events.jsonl", [])]

    def values(self) -> Values:
        """The configuration without what the client says of itself."""
        return {name: entry["value"] for name, entry in self.config.items() if name != "_wandb"}


@dataclass
class WandbServer:
    """State and behaviour; `failing`: every request is answered with status 500."""

    port: int = 0
    failing: bool = False
    runs: dict[str, WandbRun] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    alerts: list[Values] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    clients: dict[str, str] = field(default_factory=dict)
    unauthorised: int = 0

    def __post_init__(self) -> None:
        self._lock, self._count = threading.RLock(), itertools.count(1)
        self._listener: ThreadingHTTPServer | None = None

    # What tests look at

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What the client has to find in its environment."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_SILENT": "true"}

    def only_run(self) -> WandbRun:
        (run,) = self.runs.values()
        return run

    def versions(self, kind: str) -> list[Artifact]:
        """The committed versions of a type of artifact."""
        return [one for one in self.artifacts if one.type == kind and one.state == "COMMITTED"]

    def content(self, artifact: Artifact, path: str) -> bytes:
        """The bytes of a file of an artifact."""
        digest = base64.b64decode(artifact.manifest["contents"][path]["digest"]).hex()
        return self.stored[digest]

    # Life

    def start(self) -> "WandbServer":
        """Listen; the first time on a free port, then on the same one."""
        assert self._listener is None
        self._listener = _Listener(("127.0.0.1", self.port), _handler(self))
        self.port = self._listener.server_port
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Answer nothing more: connections are refused, open ones are cut."""
        if self._listener is not None:
            self._listener.shutdown()
            self._listener.server_close()
            for connection in list(self._listener.connections):
                connection.close()
            self._listener = None

    def down(self) -> bool:
        return self._listener is None

    # GraphQL

    def graphql(self, request: Values) -> Values:
        name = request.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", request["query"])[0]
        with self._lock:
            self.asked.append(name)
            answer = getattr(self, "_do_" + re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower(), None)
            if answer is None:
                self.unknown.append(request["query"])
                return {"errors": [{"message": f"the stand-in does not know {name}"}]}
            try:
                return {"data": answer(request.get("variables") or {})}
            except (KeyError, TypeError, StopIteration) as error:
                self.unknown.append(f"{request}: {error!r}")
                return {"errors": [{"message": repr(error)}]}

    def _do_viewer(self, _: Values) -> Values:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        flags = json.dumps({"code_saving_enabled": False})
        about = {"id": "u1", "entity": ENTITY, "username": ENTITY, "email": "b@example.org", "flags": flags}
        return {"viewer": {**about, "teams": teams}}

    def _do_server_features_query(self, _: Values) -> Values:
        return {"serverInfo": {"features": []}}

    def _do_run_resume_status(self, given: Values) -> Values:
        run = self.runs.get(given["name"])
        project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": ENTITY}}
        if run is None:
            return {"model": {**project, "bucket": None}}
        history, events = (run.streams.get(f"wandb-{name}.jsonl", []) for name in ("history", "events"))
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.about.get("displayName"),
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps(run.config),
            "logLineCount": len(run.streams.get("output.log", [])),
            "historyLineCount": len(history),
            "eventsLineCount": len(events),
            "historyTail": json.dumps(history[-1:]),
            "eventsTail": json.dumps(events[-1:]),
            "tags": run.about.get("tags"),
            "notes": run.about.get("notes"),
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**project, "bucket": bucket}}

    def _do_upsert_bucket(self, given: Values) -> Values:
        run_id = given.get("name") or given["id"]
        inserted = run_id not in self.runs
        run = self.runs.setdefault(run_id, WandbRun(run_id, given.get("project") or "uncategorized"))
        run.state = given.get("state") or "running"
        run.config = json.loads(given["config"]) if given.get("config") else run.config
        run.summary |= json.loads(given.get("summaryMetrics") or "{}")
        names = ("displayName", "notes", "groupName", "tags", "jobType", "program", "commit", "host", "sweep")
        run.about |= {name: given[name] for name in names if given.get(name) is not None}
        bucket = {
            "id": run.id,
            "name": run.id,
            "displayName": run.about.get("displayName"),
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "historyLineCount": len(run.history),
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": ENTITY}},
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _do_notify_scriptable_run_alert(self, given: Values) -> Values:
        self.alerts.append(given)
        return {"notifyScriptableRunAlert": {"success": True}}

    def _do_create_run_files(self, given: Values) -> Values:
        files = [
            {"name": name, "uploadUrl": self._upload(f"run/{given['run']}/{name}")} for name in given["files"]
        ]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _do_mark_run_files_uploaded(self, _: Values) -> Values:
        return {"markRunFilesUploaded": {"success": True}}

    # Artifacts

    def _do_artifact_type(self, given: Values) -> Values:
        """Of the newest version of a collection: `name` is COLLECTION:ALIAS."""
        known = [one.type for one in self.artifacts if one.name == given["name"].partition(":")[0]]
        return {"project": {"artifact": {"artifactType": {"name": known[-1]}} if known else None}}

    def _do_create_artifact(self, given: Values) -> Values:
        given = given["input"]
        name = (
            given["artifactCollectionName"]
            if "artifactCollectionName" in given
            else given["artifactCollectionNames"][0]
        )
        known = [one for one in self.artifacts if one.name == name and one.state == "COMMITTED"]
        same = next((one for one in known if one.digest == given["digest"]), None)
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        if same is None:
            metadata = json.loads(given.get("metadata") or "{}")
            number = base64.b64encode(f"Artifact:{next(self._count)}".encode()).decode()
            made = number, given["artifactTypeName"], name, given["digest"]
            same = Artifact(*made, metadata, aliases, given["runName"])
            self.artifacts.append(same)
        self.clients[given["clientID"]] = same.id
        latest = {"latestArtifact": {"id": known[-1].id} if known else None}
        return {
            "createArtifact": {"artifact": {"id": same.id, "state": same.state, "artifactSequence": latest}}
        }

    def _do_create_artifact_manifest(self, given: Values) -> Values:
        where = f"manifest/{given['artifactID']}"
        file = {
            "id": where,
            "uploadUrl": self._upload(where) if given["includeUpload"] else None,
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": given["artifactID"], "file": file}}}

    def _do_update_artifact_manifest(self, given: Values) -> Values:
        where = f"manifest/{given['artifactManifestID']}"
        file = {
            "id": where,
            "uploadUrl": self._upload(where) if given["includeUpload"] else None,
            "uploadHeaders": [],
        }
        return {
            "updateArtifactManifest": {"artifactManifest": {"id": given["artifactManifestID"], "file": file}}
        }

    def _do_create_artifact_files(self, given: Values) -> Values:
        nodes = []
        for file in given["input"]["artifactFiles"]:
            digest = base64.b64decode(file["md5"]).hex()
            nodes.append(
                {
                    "storagePath": f"stored/{digest}",
                    "uploadUrl": self._upload(f"stored/{digest}"),
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            )
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def _do_commit_artifact(self, given: Values) -> Values:
        artifact = self._artifact(given["artifactID"])
        artifact.manifest = json.loads(self.uploads[f"manifest/{artifact.id}"])
        artifact.version = sum(
            one.name == artifact.name and one.state == "COMMITTED" for one in self.artifacts
        )
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _do_client_idmapping(self, given: Values) -> Values:
        return {"clientIDMapping": {"serverID": self.clients[given["clientID"]]}}

    def _do_organization_core_weave_organization_id(self, _: Values) -> Values:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _do_artifact_by_id(self, given: Values) -> Values:
        one = self._artifact(given["id"])
        project = {"id": "p", "internalId": "p", "name": "project", "entity": {"name": ENTITY}}
        collection = {"__typename": "ArtifactSequence", "name": one.name, "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": collection}
            for alias in one.aliases
        ]
        about = {
            "__typename": "Artifact",
            "id": one.id,
            "artifactSequence": collection,
            "versionIndex": one.version,
            "artifactType": {"name": one.type},
            "description": None,
            "metadata": json.dumps(one.metadata),
            "ttlDurationSeconds": -1,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": one.state,
            "size": 0,
            "digest": one.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": "0",
            "fileCount": len(one.manifest.get("contents", {})),
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": aliases,
        }
        return {"artifact": about}

    def _do_use_artifact(self, given: Values) -> Values:
        given = given.get("input", given)  # the client's core and its Python ask in two ways
        artifact = self._artifact(given["artifactID"])
        if given["runName"] not in artifact.used_by:
            artifact.used_by.append(given["runName"])
        return {"useArtifact": {"artifact": {"id": artifact.id}}}

    def _artifact(self, id_: str) -> Artifact:
        return next(one for one in self.artifacts if one.id == id_)

    def _upload(self, where: str) -> str:
        return f"{self.url}/upload/{where}"

    # Files

    def file_stream(self, run_id: str, sent: Values) -> Values:
        with self._lock:
            run = self.runs[run_id]
            for name, part in sent.get("files", {}).items():
                if name == "wandb-summary.json":
                    run.summary = json.loads(part["content"][-1])
                    continue
                lines, offset = run.streams.setdefault(name, []), part["offset"]
                lines[offset : offset + len(part["content"])] = part["content"]
            run.preempting = run.preempting or bool(sent.get("preempting"))
            if sent.get("complete"):
                run.exit_code = sent["exitcode"]
                ended = "finished" if run.exit_code == 0 else "preempted" if run.preempting else "failed"
                run.state, run.preempting = ended, False
            return {"exitcode": run.exit_code, "limits": {}}

    def put(self, where: str, content: bytes) -> None:
        with self._lock:
            self.uploads[where] = content
            kind, _, rest = where.partition("/")
            if kind == "stored":
                self.stored[rest] = content
            elif kind == "run":
                run_id, _, name = rest.partition("/")
                self.runs[run_id].files[name] = content


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up, or a connection that `stop` has cut."""


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            if server.failing or server.down():
                return self._answer(500, {"errors": [{"message": "failing"}]})
            if base64.b64encode(f"api:{KEY}".encode()).decode() not in (
                self.headers.get("Authorization") or ""
            ):
                server.unauthorised += 1
                return self._answer(401, {"errors": [{"message": "no such key"}]})
            sent = json.loads(body)
            if self.path == "/graphql":
                return self._answer(200, server.graphql(sent))
            run = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
            return self._answer(200, server.file_stream(run[1], sent)) if run else self._answer(404, {})

        def do_PUT(self) -> None:
            body = self._body()
            if server.failing or server.down():
                return self._answer(500, {})
            server.put(self.path.removeprefix("/upload/"), body)
            return self._answer(200, {})

        def do_GET(self) -> None:
            return self._answer(404, {})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def _answer(self, status: int, content: Values) -> None:
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving() -> Iterator[WandbServer]:
    """A running server, stopped when the block ends."""
    server = WandbServer().start()
    try:
        yield server
    finally:
        server.stop()
