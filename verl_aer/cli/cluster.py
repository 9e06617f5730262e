"""`verl-aer cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_aer.cli.arguments import examples

EXAMPLES = examples(
    "cluster",
    "cluster --address 10.0.0.1:6379 --gpus-per-node 8 --wait 300 node1 node2",
)


def cluster(
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="NODE", help="Names of the nodes that must join.")
    ] = None,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Head of the cluster; auto is the cluster of this machine.")
    ] = "auto",
    gpus_per_node: Annotated[int, typer.Option(help="GPUs that each node must have.")] = 0,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit for missing nodes and GPUs, in seconds.")
    ] = 0.0,
    only_wait: Annotated[bool, typer.Option("--only-wait", help="Only wait for the nodes.")] = False,
    shared: Annotated[
        Path | None,
        typer.Option(help="Folder that all nodes share.", show_default="the current folder"),
    ] = None,
) -> None:
    """Compare the nodes of a running Ray cluster: packages, GPUs, disks, clocks."""
    from verl_aer.launch.cluster_doctor import check_cluster

    code = check_cluster(
        address,
        expected=nodes or [],
        gpus_per_node=gpus_per_node,
        wait_seconds=wait,
        shared=shared,
        only_wait=only_wait,
    )
    raise typer.Exit(code)
