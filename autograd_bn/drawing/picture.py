"""What a picture shows, as plain records: all is settled here, and nothing is known of DOT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine import Leaf, Node
from . import arrange, labels
from .repeats import Repeat
from .scene import Call, Scene


@dataclass(slots=True)
class Shape:
    """A node of the picture: what it is called, the frame that it is in, and of whose node it shows the value."""

    kind: str
    lines: list[str]
    frame: int | None = None
    node: Node | None = None
    value: list[str] = field(default_factory=list)
    gradient: list[str] = field(default_factory=list)
    again: bool = False  # a leaf that stands elsewhere, too, with its value

    @property
    def text(self) -> list[str]:
        """All lines that it shows."""
        return [*self.lines, *self.value, *self.gradient]


@dataclass(slots=True)
class Arrow:
    """An edge between two shapes, by their places in the picture."""

    tail: int
    head: int
    label: str = ""
    position: int | None = None  # among the operands of the node at its head
    gradient: bool = False  # whether one flows back along it
    spine: bool = False  # on the way forward to the first output


@dataclass(slots=True)
class Frame:
    """What is drawn around shapes that belong together, perhaps inside another frame."""

    title: str
    kind: str
    parent: int | None
    repeat: int | None = None  # the place of the repeat that it is


class Picture:
    """All that is drawn of a graph, in topological order. A place in `shapes` or in `frames` is an id.

    `values` and `gradients`, if any, have an entry for each node whose value or gradient is known; `stored` ones are
    what the leaves hold, and flow nowhere. `brief` ones, of a page, are short. Dots stand where the graph goes on
    beyond what is shown. The calls of modules become frames, or boxes. Of each of `repeats` one block is drawn.
    """

    def __init__(
        self,
        scene: Scene,
        values: Mapping[Node, Any] | None = None,
        gradients: Mapping[Node, Any] | None = None,
        stored: bool = False,
        brief: bool = False,
        repeats: Sequence[Repeat] = (),
    ) -> None:
        self.scene, self.values, self.gradients, self.stored, self.brief = scene, values, gradients, stored, brief
        self.repeats, self.dtype = repeats, scene.graph.outputs[0].dtype
        self.flowing = {} if stored or brief else gradients or {}
        self.shapes, self.arrows, self.frames = list[Shape](), list[Arrow](), list[Frame]()
        # What is drawn for what is in a later block, and of what is drawn what stands in the last block.
        self.first = {
            n: one for first, *later in repeats for block in later for n, one in zip(block, first, strict=True)
        }
        self.last = {n: last for repeat in repeats for n, last in zip(repeat[0], repeat[-1], strict=True)}
        self.roles = {node: role for norm in scene.norms for node, role in norm.items() if role}
        names = {n: scene.names.get(n) or n.name or self.roles.get(n, "") for n in scene.graph.nodes}
        self.names = labels.numbered(names) if brief else names

        shown = [node for node in scene.shown if node not in self.first]
        boxes: dict[Call, list[Node]] = {}
        for node in shown:
            if (calls := scene.calls_of(node)) and calls[-1].kind == "box":
                boxes.setdefault(calls[-1], []).append(node)
        # Of the nodes in a box the one that has its result, and all of them.
        self.parts = {n: parts for call, parts in boxes.items() for n in parts if scene.origin(n) is call.result}
        hidden = {node for parts in boxes.values() for node in parts} - self.parts.keys()
        framed: dict[Any, int] = {}  # the frame of a module's call, or of a fused node
        self.home = {node: self.frame(node, framed) for node in shown if node not in hidden}
        aside = {node for norm in scene.norms for node in self.frame_statistics(norm)}
        inputs = {n: [arg for arg, *_ in self.operands(n) if isinstance(arg, Node)] for n in self.home}
        for node, parents in inputs.items():  # a parameter stands in its module's frame
            for parent in parents:
                if parent in scene.names and self.home.get(parent, 0) is None:
                    self.home[parent] = self.home[node]
        self.again = arrange.drawn_again(inputs)
        outputs = [self.drawn(node) for node in scene.graph.outputs]
        self.spine = arrange.spine(outputs[0], inputs, aside)
        self.outputs = dict.fromkeys([node for node in outputs if node in self.home])

        self.place: dict[Any, int] = {}  # the shape of a node, or of a copy of a leaf
        for node in self.home:
            self.add_node(node)
        for node in self.outputs:
            name = node.name if node.name and node.op else "output"
            here = self.add("output", [name], None, self.last.get(node, node))
            self.connect(self.place[node], here, node, spine=node is outputs[0], gradient=self.flows(node, node))
        cut = {parent for node in {*scene.graph.nodes} - {*scene.shown} for parent in node.inputs if parent.op}
        for node in [node for node in self.home if node in cut]:
            self.connect(self.place[node], self.add("more", ["…"], None), node)

    # --- Frames ---

    def repeat_frame(self, repeat: Repeat) -> tuple[int, str]:
        """How many frames of modules are around the blocks, and what their own says."""
        blocks = [[node for node in block if node.op] for block in (repeat[0], repeat[-1])]
        calls = [self.framing(node) for block in blocks for node in block]
        depth = len([level for level in zip(*calls, strict=False) if len(set(level)) == 1])
        ends = (blocks[0][0], blocks[1][-1])
        first, last = ([call.path for call in self.scene.calls_of(node) if call.path][depth:][:1] for node in ends)
        return depth, f"× {len(repeat)}: {first[0]} to {last[0]}" if first and last else f"× {len(repeat)}"

    def framing(self, node: Node) -> list[Call]:
        """The calls of modules whose frames a node is in, outermost first."""
        return [call for call in self.scene.calls_of(node) if call.path and call.kind != "box"]

    def frame(self, node: Node, framed: dict[Any, int]) -> int | None:
        """The frame of a node: of the module that recorded it, or of the fused node that it is, or is a part of."""
        here, origin = None, self.scene.origin(node)
        fused = origin.own_op == "batch_norm" and node not in self.parts
        options = labels.title(origin)[1:] if fused and node.op != origin.op else []
        calls = self.framing(node)
        around: list[tuple[Any, str, str]] = [(call, call.title, call.kind) for call in calls]
        if fused and not (calls and calls[-1].kind == "fused"):
            around.append((origin, "batch_norm" if options else "fused", "fused"))
        for place, repeat in enumerate(self.repeats):
            if node in repeat[0] and node.op:
                depth, title = self.repeat_frame(repeat)
                around.insert(depth, (place, title, "repeat"))
        for key, title, kind in around:
            if key not in framed:
                framed[key] = len(self.frames)
                lines = [title, ", ".join(options)] if kind == "fused" and options else [title]
                self.frames.append(Frame("\n".join(lines), kind, here, key if kind == "repeat" else None))
            here = framed[key]
        return here

    def frame_statistics(self, norm: Mapping[Node, str]) -> list[Node]:
        """Put what computes the statistics of a batch norm into a frame."""
        if branch := arrange.statistics([*self.home], norm):
            taken = any(norm[node] in ("mean", "var") and node.op for node in branch)
            title = "batch statistics" if taken else "given statistics"
            self.frames.append(Frame(title, "statistics", self.home[branch[-1]]))
            self.home |= dict.fromkeys(branch, len(self.frames) - 1)
        return branch

    # --- Shapes and arrows ---

    def operands(self, node: Node) -> list[tuple[Any, str, int]]:
        """The nodes and arrays that a shape reads, each with its name and place among the operands."""
        if parts := self.parts.get(node):
            pairs = [(arg, i) for part in parts for i, arg in enumerate(part.args)]
            return [(self.drawn(arg), "", i) for arg, i in pairs if isinstance(arg, Node) and arg not in parts]
        named = enumerate(zip(node.args, labels.operand_names(node), strict=True))
        return [(self.drawn(arg), name, i) for i, (arg, name) in named if labels.is_array(arg)]

    def drawn(self, arg: Any) -> Any:
        """What is drawn of an operand: where it is in a block that is left out, what stands for it."""
        return self.first.get(arg, arg) if isinstance(arg, Node) else arg

    def add(self, kind: str, lines: list[str], frame: int | None, node: Node | None = None, full: bool = True) -> int:
        shape = Shape(kind, [part for line in lines if line for part in labels.wrapped(line)], frame, node)
        shape.again = isinstance(node, Leaf) and not full
        if node and full and self.values is not None:
            shape.value = self.array_lines(node, self.values)
        if node and full and self.gradients is not None:
            shape.gradient = self.array_lines(node, self.gradients, ".grad " if self.stored else "∂ ")
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def array_lines(self, node: Node, arrays: Mapping[Node, Any], what: str = "") -> list[str]:
        """The lines for the array of a node; in a repeat for those of the first and the last block, on a page none."""
        ends = [("", node)]
        if node in self.last:
            ends = [] if self.brief else [("first ", node), ("last ", self.last[node])]
        lines = []
        for word, end in ends:
            if end in arrays:
                lines += labels.value_text(arrays[end], f"{what}{word}", self.brief or node in self.last)
            elif isinstance(end, Leaf) and end.requires_grad:
                lines.append(f"no {'.grad' if self.stored else 'gradient'} {word}".rstrip())
        return lines

    def connect(self, tail: int, head: int, array: Any, name: str = "", **about: Any) -> None:
        said = self.shapes[tail].lines[0].partition(" = ")[0].rpartition(".")[2]
        shape, dtype = str(array.shape or ""), "" if array.dtype == self.dtype else str(array.dtype)
        words = [name if name != said else "", shape, dtype]
        self.arrows.append(Arrow(tail, head, " ".join(filter(None, words)), **about))

    def flows(self, node: Node, arg: Node) -> bool:
        """Whether to show that a gradient flows to `arg` from `node`, or from what reads it."""
        parts = self.parts.get(node, [node])
        reached = {self.drawn(there) for part in parts if part in self.flowing for there in part.receivers}
        return arg in self.flowing and (node is arg or arg in reached)

    def tail_of(self, arg: Any, reader: Node, name: str) -> int:
        """The shape that an arrow to `reader` comes from."""
        if not isinstance(arg, Node):
            value = labels.value_text(arg) if self.values is not None or arg.size <= labels.SHORT else []
            frame = None if reader.own_op == "batch_norm" else self.home[reader]
            return self.add("constant", [name if len(name) > 1 else "constant", *value], frame)
        again = (arg, reader) in self.again
        if arg in self.place and not again:
            return self.place[arg]
        if (arg, reader) not in self.place:
            frame = self.home[reader] if not again or arg in self.scene.names else None
            kind, lines = (self.kind(arg), self.title(arg)) if again else ("more", ["…"])
            self.place[arg, reader] = self.add(kind, lines, frame, arg if again else None, full=False)
        return self.place[arg, reader]

    def add_node(self, node: Node) -> None:
        operands = self.operands(node)
        tails = [self.tail_of(arg, node, name) for arg, name, _ in operands]
        alike = len(operands) == 1 or node.own_op in labels.COMMUTATIVE  # operands that need no names
        # The value of an operation that is an output stands there.
        full = not node.op or node not in self.outputs or node in self.last
        here = self.place[node] = self.add(self.kind(node), self.title(node), self.home[node], node, full)
        for tail, (arg, name, place) in zip(tails, operands, strict=True):
            about = {"spine": self.spine.get(node) is arg, "gradient": isinstance(arg, Node) and self.flows(node, arg)}
            self.connect(tail, here, arg, "" if alike else name, position=place, **about)

    def kind(self, node: Node) -> str:
        if node.op:
            return node.op if node.own_op in ("stop_gradient", "allreduce") else "operation"
        if not node.requires_grad:
            return "input"
        return "parameter" if self.trained(node) else "variable"

    def trained(self, leaf: Node) -> bool:
        """Whether a leaf is a parameter: the model's that is drawn, or else what has no batch axis as the data have."""
        if self.scene.names:
            return leaf in self.scene.names
        leaves = [node for node in self.scene.graph.nodes if isinstance(node, Leaf)]
        data = max(leaves, key=lambda node: (len(node.shape), not node.requires_grad))
        same = len(leaf.shape) == len(data.shape) and leaf.shape[:1] == data.shape[:1]
        return leaf is not data and not same

    def title(self, node: Node) -> list[str]:
        first, *lines = labels.title(node)
        last = self.last.get(node, node)
        if not node.op:
            said = last.name if last.name != node.name and node not in self.scene.names else None
            return [self.scene.names.get(node, first), *([f"to {said}"] if said else [])]
        lines += [f"to {line}" for line in labels.title(last)[1:] if line not in lines]
        if node.own_op == "batch_norm":
            lines = [labels.formula(node), ", ".join(lines)]
        if node in self.parts:
            return [self.scene.calls_of(node)[-1].title, *(lines if node.own_op == "batch_norm" else [])]
        name = "" if node in self.outputs and node.name else self.names[node]
        if node in self.last:
            name = name.rstrip(labels.INDICES)
        if name.rstrip(labels.INDICES) == node.op:  # an operation with its number
            return [first.replace(node.op, name, 1), *lines]
        return [f"{name} = {first}" if name else first, *lines]
