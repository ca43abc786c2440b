"""One run of phase 4: groups through the checklist, then each pull request and issue in its turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from fib_tools.errors import PublishError
from fib_tools.model.definition import Definition
from fib_tools.model.manifest import (
    FiStatus,
    Manifest,
    ManifestKernel,
    Phase1Status,
    SglStatus,
    Submission,
    SubmissionKind,
)
from fib_tools.phases.context import Context
from fib_tools.phases.coverage_models import describe_coverage
from fib_tools.phases.dossiers import gather_dossiers
from fib_tools.phases.manifests import save_manifest
from fib_tools.phases.submit_result import SubmitEntry, SubmitResult
from fib_tools.phases.template_request import format_template_request
from fib_tools.publish import github, huggingface
from fib_tools.publish.checklist import (
    Terms,
    check_alone,
    check_links,
    check_secrets,
    check_single_file,
    run_checklist,
)
from fib_tools.publish.coverage_document import CoveredModel, update_document
from fib_tools.publish.dossier import Group, make_groups
from fib_tools.publish.github import BranchPull, FilePull, GitHub, IssuePlan
from fib_tools.publish.huggingface import DatasetPull, Hub
from fib_tools.publish.losses import check_nothing_is_lost
from fib_tools.publish.outward import Failure, Outbox, Patience, Places, Request, Settled, persist
from fib_tools.publish.submission_texts import (
    Text,
    make_marker,
    write_coverage_text,
    write_dataset_text,
    write_integration_text,
    write_kernel_request,
    write_template_request,
)

__all__ = ["PATIENCE", "Run"]

PATIENCE = Patience()
_DATASET_URL = "https://huggingface.co/datasets/{repo}"
"""Stands for the link of a pull request that is not open yet, where requests are only shown."""
_TEMPLATE_LABELS = ("enhancement", "flashinfer-trace")
_KERNEL_LABELS = ("enhancement",)


@dataclass(kw_only=True)
class Run:
    """Works through the groups, and keeps what came of each in the manifest as soon as it is known."""

    context: Context
    name: str
    """Of the manifest's file."""
    manifest: Manifest
    places: Places
    sends: bool
    entries: list[SubmitEntry] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def submit(
        self,
        definitions: Sequence[Definition],
        *,
        grouping: str,
        takes_dummy_weights: bool = False,
        sglang_branch: str | None = None,
    ) -> SubmitResult:
        """Submit every group that passes the checklist."""
        dossiers = gather_dossiers(self.context, self.manifest, definitions)
        groups = make_groups(grouping, dossiers)
        terms = Terms(manifest=self.manifest, takes_dummy_weights=takes_dummy_weights)
        sound = [group for group in groups if self._passes(group, terms)]
        urls = {group.key: url for group in sound if (url := self._submit_dataset(group))}
        for group in groups:
            self._submit_coverage(group, urls.get(group.key))
        sent = {name: urls[group.key] for group in sound if group.key in urls for name in group.names}
        self._request_kernels(sent)
        self._request_templates(sent)
        if sglang_branch is not None:
            self._offer_branch(sglang_branch)
        return SubmitResult(
            model=self.manifest.model,
            manifest_path=str(self.context.workspace.root / self.name),
            sent=self.sends,
            entries=tuple(self.entries),
            failures=tuple(self.failures),
            requests=tuple(self.requests),
            notes=tuple(self._list_notes()),
        )

    def _passes(self, group: Group, terms: Terms) -> bool:
        """Hold a group against the checklist, and its texts against theirs."""
        failures = list(run_checklist(group.key, group.dossiers, terms))
        failures += check_links(group.key, self._list_texts(group), self.manifest)
        failures += check_secrets(group.key, group.list_payloads())
        failures += check_alone(group, self.manifest, self.places.hf_repo)
        self.failures += failures
        return not failures

    def _list_texts(self, group: Group) -> list[str]:
        marker = self._mark("dataset", group.key)
        url = _DATASET_URL.format(repo=self.places.hf_repo)
        return [
            write_dataset_text(self.manifest, group, marker).body,
            write_coverage_text(self.manifest, group, marker, dataset_url=url).body,
        ]

    def _mark(self, kind: SubmissionKind, subject: str) -> str:
        return make_marker(self.manifest.model, f"{kind} {subject}")

    def _submit_dataset(self, group: Group) -> str | None:
        """Submit to the dataset; give the address of the pull request, or what stands for it."""
        text = write_dataset_text(self.manifest, group, self._mark("dataset", group.key))
        plan = DatasetPull(
            repo=self.places.hf_repo,
            subject=group.key,
            marker=self._mark("dataset", group.key),
            title=text.title,
            body=text.body,
            payloads=group.list_payloads(),
            definitions=group.names,
        )

        def check(paths: Sequence[str]) -> None:
            if self._hub is not None:
                check_nothing_is_lost(plan, paths, read=self._hub.read)

        def settle() -> Settled:
            if self._hub is None:
                return huggingface.preview(self._outbox, plan)
            return self._hub.settle(plan, check=check)

        settled = self._settle("dataset", group.key, plan.repo, settle, count=len(group.names))
        if settled is None or settled.action == "closed":
            return None
        return settled.submission.url if settled.submission else _DATASET_URL.format(repo=plan.repo)

    def _submit_coverage(self, group: Group, dataset_url: str | None) -> None:
        repo, key = self.places.github_repo, group.key
        if dataset_url is None:
            is_blocked = any(failure.group == key for failure in self.failures)
            count = len(group.names)
            if is_blocked:
                self._note("dataset", key, "blocked", self.places.hf_repo, count=count)
                self._note("coverage", key, "blocked", repo, count=count)
            else:
                note = "its pull request of the dataset is not open"
                self._note("coverage", key, "waiting", repo, count=count, note=note)
            return
        text = write_coverage_text(self.manifest, group, self._mark("coverage", key), dataset_url=dataset_url)
        covered = self._describe(group)
        plan = FilePull(
            repo=repo,
            subject=key,
            branch=f"fib/{self.manifest.model}/{key}",
            path=self.places.document,
            write=lambda standing: update_document(standing, [covered]),
            message=text.title,
            title=text.title,
            body=text.body,
            definitions=group.names,
        )

        def check(paths: list[str]) -> None:
            for failure in check_single_file(key, paths, plan.path):
                raise PublishError(failure.found, where=repo, todo=failure.todo)

        def settle() -> Settled:
            if self._github is None:
                return github.preview(self._outbox, plan)
            return self._github.settle_file(plan, check=check)

        self._settle("coverage", key, repo, settle, count=len(group.names))

    def _describe(self, group: Group) -> CoveredModel:
        """Describe the model's coverage as it will be once this group is merged: other groups may never be."""
        standing, _ = self.context.dataset.load_definitions()
        covered = describe_coverage(self.context, self.manifest, standing)
        merged = {name for item in self.manifest.submissions if _is_merged(item) for name in item.definitions}
        old = {
            kernel.definition or kernel.name
            for kernel in self.manifest.kernels
            if kernel.phase1_status is Phase1Status.EXISTING
        }
        there = {*group.names, *merged, *old}
        kernels = [
            kernel if kernel.name in there else kernel.model_copy(update={"status": "missing", "workloads": 0})
            for kernel in covered.kernels
        ]
        return covered.model_copy(update={"kernels": tuple(kernels)})

    def _link(self, sent: dict[str, str]) -> dict[str, str]:
        """Give the pull request of each Definition that was sent, in this run or an earlier one."""
        known = [item for item in self.manifest.submissions if item.kind == "dataset" and item.status != "closed"]
        return {name: item.url for item in known for name in item.definitions} | sent

    def _request_kernels(self, sent: dict[str, str]) -> None:
        """Ask FlashInfer for the kernels that it does not have, once a kind, for all its sizes."""
        links = self._link(sent)
        lacking = [
            kernel
            for kernel in self.manifest.kernels
            if kernel.fi_status is FiStatus.MISSING and _name(kernel) in links
        ]
        for subject in sorted({kernel.kernel for kernel in lacking if _name(kernel) in sent}):
            kernels = [kernel for kernel in lacking if kernel.kernel == subject]
            marker = self._mark("kernel request", subject)
            text = write_kernel_request(self.manifest, kernels, marker, dataset_url=links[_name(kernels[0])])
            self._submit_issue("kernel request", subject, text, kernels, _KERNEL_LABELS)

    def _request_templates(self, sent: dict[str, str]) -> None:
        """Ask FlashInfer for the trace templates of the APIs that have none, once an API, for all its sizes."""
        links = self._link(sent)
        lacking = [
            kernel
            for kernel in self.manifest.kernels
            if kernel.fi_status is FiStatus.SUPPORTED and not kernel.fi_trace_template and _name(kernel) in links
        ]
        for subject in sorted({kernel.fi_api or "" for kernel in lacking if _name(kernel) in sent}):
            kernels = [kernel for kernel in lacking if kernel.fi_api == subject]
            example = self.context.dataset.find_definition(_name(kernels[0]))
            if example is None:
                continue  # somebody removed it since it was sent
            asked = format_template_request(example, subject)
            text = write_template_request(
                self.manifest,
                Text(title=asked.title, body=asked.body),
                kernels,
                self._mark("template request", subject),
                dataset_url=links[example.name],
            )
            self._submit_issue("template request", subject, text, kernels, _TEMPLATE_LABELS)

    def _submit_issue(
        self,
        kind: SubmissionKind,
        subject: str,
        text: Text,
        kernels: Sequence[ManifestKernel],
        labels: tuple[str, ...],
    ) -> None:
        plan = IssuePlan(
            repo=self.places.flashinfer_repo,
            kind=kind,
            subject=subject,
            marker=self._mark(kind, subject),
            title=text.title,
            body=text.body,
            labels=labels,
            definitions=tuple(_name(kernel) for kernel in kernels),
        )

        def settle() -> Settled:
            if self._github is None:
                return github.preview(self._outbox, plan)
            return self._github.settle_issue(plan)

        self._settle(kind, subject, plan.repo, settle, count=len(kernels))

    def _offer_branch(self, head: str) -> None:
        kernels = [kernel for kernel in self.manifest.kernels if kernel.sgl_status is SglStatus.MISSING]
        text = write_integration_text(self.manifest, kernels, self._mark("integration", head))
        plan = BranchPull(
            repo=self.places.sglang_repo,
            subject=head,
            head=head,
            title=text.title,
            body=text.body,
            definitions=tuple(_name(kernel) for kernel in kernels),
        )

        def settle() -> Settled:
            if self._github is None:
                return github.preview(self._outbox, plan)
            return self._github.settle_branch(plan)

        self._settle("integration", head, plan.repo, settle, count=len(kernels))

    @cached_property
    def _outbox(self) -> Outbox:
        return Outbox(sends=self.sends, sent=self.requests.append)

    @cached_property
    def _hub(self) -> Hub | None:
        token = self.places.tokens.hub
        return Hub(self._outbox, token=token, endpoint=self.places.hf_endpoint) if token else None

    @cached_property
    def _github(self) -> GitHub | None:
        token = self.places.tokens.github
        return GitHub(self._outbox, token=token, api=self.places.github_api) if token else None

    def _settle(
        self, kind: SubmissionKind, subject: str, repo: str, settle: Callable[[], Settled], *, count: int
    ) -> Settled | None:
        """Take a step with patience, and write down what came of it; None if it failed."""
        self.context.progress(f"{kind}: {subject}", 0, 0)
        before = self._outbox.tries
        try:
            settled = persist(settle, PATIENCE)
        except PublishError as error:
            self._note(kind, subject, "failed", repo, count=count, note=str(error))
            return None
        if settled.action == "unchanged" and self._outbox.tries > before:
            # an attempt was served and got no answer; the one after it found everything done
            settled = settled.model_copy(update={"action": "updated" if self._is_known(settled) else "opened"})
        if settled.submission is not None and self.sends:
            self._record(settled.submission)
        url = settled.submission.url if settled.submission else ""
        self.entries.append(
            SubmitEntry(
                kind=kind,
                subject=subject,
                status=settled.action,
                repo=repo,
                url=url,
                branch=settled.branch,
                title=settled.title,
                definitions=count,
                note=settled.note,
            )
        )
        return settled

    def _is_known(self, settled: Settled) -> bool:
        return settled.submission is not None and _key(settled.submission) in map(_key, self.manifest.submissions)

    def _note(self, kind: SubmissionKind, subject: str, status: str, repo: str, *, count: int, note: str = "") -> None:
        entry = SubmitEntry.model_validate(
            {"kind": kind, "subject": subject, "status": status, "repo": repo, "definitions": count, "note": note}
        )
        self.entries.append(entry)

    def _record(self, submission: Submission) -> None:
        """Write down at once what is open: who is killed after this finds it here, and before this by its marker."""
        others = [item for item in self.manifest.submissions if _key(item) != _key(submission)]
        update: dict[str, object] = {"submissions": tuple(sorted([*others, submission], key=_key))}
        if submission.kind == "template request":
            update["kernels"] = tuple(
                kernel.model_copy(update={"fi_trace_template_request_url": submission.url})
                if kernel.fi_api == submission.subject
                else kernel
                for kernel in self.manifest.kernels
            )
        self.manifest = self.manifest.model_copy(update=update)
        save_manifest(self.context.workspace, self.name, self.manifest)

    def _list_notes(self) -> Iterable[str]:
        if not self.sends and (self._hub is None or self._github is None):
            lacking = [name for name, there in (("Hugging Face", self._hub), ("GitHub", self._github)) if there is None]
            yield f"not looked up without a token or offline, as if nothing were there yet: {', '.join(lacking)}"


def _name(kernel: ManifestKernel) -> str:
    return kernel.definition or kernel.name


def _is_merged(submission: Submission) -> bool:
    return submission.kind == "dataset" and submission.status == "merged"


def _key(submission: Submission) -> tuple[str, str, str]:
    return submission.kind, submission.subject, submission.repo
