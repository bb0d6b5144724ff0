"""What is reported of tasks to whoever watches a node (services.md section 11.3).

The events are those of the 1.9 line (tasks-and-polo.md section 2.3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pilotfleet.protocol.services.polo import SUBMITTER_DELTA

if TYPE_CHECKING:
    from pilotfleet.protocol.services.receipts import SignedReceipt
    from pilotfleet.services.taskrecord import TaskRecord

__all__ = ["completed", "polo_updated", "submitted"]


def submitted(agent: Any, record: TaskRecord) -> None:
    """A peer gave a task to the agent."""
    agent.report(
        "task.submitted",
        task_id=record.task_id,
        description=record.description,
        submitter_node=record.peer,
        **{"from": record.from_addr},
    )


def completed(agent: Any, record: TaskRecord) -> None:
    """A task that the agent gave to a peer has its results."""
    agent.report(
        "task.completed", task_id=record.task_id, result_type=record.result_type
    )


def polo_updated(agent: Any, receipt: SignedReceipt) -> None:
    """The agent signed that a peer has earned its reward."""
    agent.report(
        "polo.updated",
        task_id=receipt.task_id,
        submitter_delta=SUBMITTER_DELTA,
        receiver_reward=receipt.reward,
    )
