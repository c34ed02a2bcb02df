"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const app = $("app"), panel = $("panel"), slider = $("slider"), list = $("steps");
const act = (name) => document.querySelector(`[data-do=${name}]`);
const make = (ns) => (tag, attributes, ...children) => {
  const e = document.createElementNS(ns, tag);
  for (const key in attributes) { e.setAttribute(key, attributes[key]); }
  e.append(...children);
  return e;
};
const el = make("http://www.w3.org/1999/xhtml"), shape = make("http://www.w3.org/2000/svg");

/* What is shown: the pane in front, the chosen node, the path that is lit. */
const S = { pane: 0, sel: null, way: null, was: null, ulp: true, keys: true, timer: 0 };
/* A pane shows one view at one step; a comparison has two of them. */
const panes = [...document.querySelectorAll(".stage")].map((stage, k) => (
  { stage, view: D.beside ? k : D.start, step: 0, scale: 0 }
));
const drawn = [...document.querySelectorAll(".view")].map((box) => {
  const nodes = new Map(), edges = new Map(), svg = box.querySelector("svg");
  box.querySelectorAll("[data-node]").forEach((e) => {
    const id = Number(e.dataset.node);
    nodes.set(id, [...(nodes.get(id) || []), e]);
  });
  box.querySelectorAll("[data-edge]").forEach((e) => edges.set(e.dataset.edge, e));
  return { box, svg, nodes, edges, size: svg.getAttribute("viewBox").split(" ").slice(2).map(Number) };
});
const main = () => panes[S.pane], view = (pane = main()) => D.views[pane.view];
const step = (pane = main()) => view(pane).steps[pane.step], end = () => view().steps.length - 1;
const known = (pane) => {
  const values = new Set(view(pane).nodes.filter((n) => n.op === null).map((n) => n.id)), grads = new Map();
  for (const s of view(pane).steps.slice(0, pane.step + 1)) {
    if (s.pass === "forward") { values.add(s.node); }
    s.parts.forEach((p) => grads.set(p.to, p));
  }
  return { values, grads, done: (id) => { const got = grads.get(id); return Boolean(got) && got.n === got.of; } };
};

/* --- numbers and arrays --- */
const number = (x) => {
  const v = Number(x), size = Math.abs(v);
  if (typeof x === "string" && !Number.isFinite(v)) { return x; }
  const text = size && (size >= 1e5 || size < 1e-3) ? v.toExponential(2) : String(Number(v.toPrecision(4)) + 0);
  return text.replace(/-/g, "−");
};
const ratio = (x) => { const [a, b] = String(x).split("/").map(Number); return b ? a / b : a; };
const SHADES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxy";
const size = (dims) => dims.join("×") || "scalar";
const row = (a, at, columns, top) => {
  const line = el("tr", {}), place = [];
  for (let i = a.shape.length - 2, rest = at / columns; i >= 0; i--) {
    place.unshift(rest % a.shape[i]);
    rest = Math.floor(rest / a.shape[i]);
  }
  if (place.length > 1) { line.append(el("th", { scope: "row" }, place.join(","))); }
  a.data.slice(at, at + columns).forEach((x) => {
    const v = ratio(x), share = Math.round(45 * Math.min(1, Math.abs(v) / top)), cell = el("td", { title: x }, number(x));
    const hue = `var(--${v > 0 ? "pos" : "neg"})`;
    if (share) { cell.style.background = `color-mix(in srgb, ${hue} ${share}%, transparent)`; }
    line.append(cell);
  });
  return line;
};
const figures = ({ stats, tile, hist, first, last }) => {
  const range = `mean ${number(stats.mean)}, sd ${number(stats.sd)}, ${number(stats.min)} … ${number(stats.max)}`;
  const ends = `${first.map(number).join(", ")} … ${last.map(number).join(", ")}`, out = [el("p", {}, range)];
  out.push(el("p", { class: "cap" }, `zeros ${stats.zeros}, not finite ${stats.nonfinite}`));
  if (tile) {
    const { columns, shades } = tile, rows = shades.length / columns, most = Math.max(...hist);
    const sized = (width, height, label, rest) => shape("svg", {
      viewBox: `0 0 ${width} ${height}`, width: 150, role: "img", "aria-label": label, ...rest,
    });
    const blocks = sized(columns, rows, `means of ${rows} by ${columns} blocks`, {
      height: Math.max(12, 150 * Math.min(1, rows / columns)), preserveAspectRatio: "none",
    });
    blocks.append(...[...shades].map((letter, i) => {
      const q = SHADES.indexOf(letter) - 25;
      const place = { x: i % columns, y: Math.floor(i / columns), width: 1, height: 1 };
      return shape("rect", { ...place, class: q < 0 ? "neg" : "pos", "fill-opacity": Math.abs(q) / 25 });
    }));
    const bars = sized(6 * hist.length, 40, "histogram", { height: 48, class: "bars" });
    bars.append(...hist.map((n, i) => shape("rect", { x: 6 * i, y: 40 - 38 * n / most, width: 5, height: 38 * n / most })));
    out.push(el("div", { class: "equation" }, blocks, bars));
  }
  return [...out, el("p", { class: "cap" }, ends)];
};
const array = (index, caption) => {
  if (index === null) { return ""; }
  const a = D.arrays[index], box = el("div", { class: "array" });
  box.append(el("div", { class: "cap" }, `${caption}  ${size(a.shape)} ${a.dtype}`));
  if (!a.data) { box.append(...figures(a)); return box; }
  const columns = a.shape.length ? a.shape[a.shape.length - 1] : 1, table = el("table", { "aria-label": caption });
  const top = Math.max(0, ...a.data.map(ratio).filter(Number.isFinite).map(Math.abs)) || 1;
  for (let at = 0; at < a.data.length; at += columns) { table.append(row(a, at, columns, top)); }
  box.append(table);
  return box;
};

/* --- the graph at a step --- */
const overlay = (pane, edge, name) => {
  const e = drawn[pane.view].edges.get(edge);
  if (e) { e.append(shape("path", { d: e.querySelector("path").getAttribute("d"), class: `${name} extra` })); }
};
const badge = (e, lines, name) => {
  const b = e.querySelector("polygon,ellipse,path").getBBox();
  const width = 6.6 * Math.max(...lines.map((line) => line.length)) + 8, height = 13 * lines.length + 3;
  const x = b.x + b.width - width / 2, y = b.y - height + 6;
  e.append(shape("g", { class: `badge extra ${name}` }, shape("rect", { x, y, width, height, rx: 4 }),
    ...lines.map((line, i) => shape("text", { x: x + width / 2, y: y + 12 + 13 * i }, line))));
};
const ulp = (x) => x === null ? "∞" : x < 1000 ? String(Number(x.toPrecision(2))) : x.toExponential(0);
const errors = (note, done) => ["value", "grad"].filter((what) => note.ulp[what] && (what === "value" || done));
const wear = (e, n, note, k) => {
  const got = k.grads.get(n.id), done = k.done(n.id);
  if (got && !done) { badge(e, [`∂ ${got.n} of ${got.of}`], ""); }
  if (note.verdict && done) { badge(e, [note.verdict.ok ? "✓ right" : "✗ wrong"], note.verdict.ok ? "ok" : "no"); }
  if (S.ulp && note.ulp && k.values.has(n.id)) {
    const shown = errors(note, done), worst = Math.max(...shown.map((what) => note.ulp[what].own ?? Infinity));
    badge(e, shown.map((what) => {
      const { own, other, apart } = note.ulp[what];
      return `${what === "grad" ? "∂ " : ""}${ulp(own)}${other === undefined ? "" : ` | ${ulp(other)} Δ${ulp(apart)}`}`;
    }), `b${[0.5, 1, 4, 64].filter((limit) => worst > limit).length}`);
  }
};
const paint = (pane) => {
  const { nodes, svg } = drawn[pane.view], st = step(pane), k = known(pane), sel = pane === main() ? S.sel : null;
  svg.querySelectorAll(".extra").forEach((e) => e.remove());
  for (const n of view(pane).nodes) {
    const got = k.grads.get(n.id), done = k.done(n.id), note = view(pane).notes[n.id] || {};
    const worn = nodes.get(n.id) || [], wearer = worn.find((e) => e.querySelector(".v")) || worn[0];
    const state = [n.symbol, n.op || n.kind, size(n.shape)];
    if (!k.values.has(n.id)) { state.push("not computed yet"); }
    if (got) { state.push(done ? "gradient complete" : `gradient ${got.n} of ${got.of} shares`); }
    worn.forEach((e) => {
      const flags = { nov: !k.values.has(n.id), nog: !done, now: st.node === n.id, sel: sel === n.id };
      flags.bad = Boolean(done && note.verdict && !note.verdict.ok);
      for (const name in flags) { e.classList.toggle(name, flags[name]); }
      e.setAttribute("role", "button");
      e.setAttribute("aria-label", state.join(", "));
      e.setAttribute("tabindex", e === worn[0] && n.id === (sel ?? st.node ?? 0) ? 0 : -1);
    });
    if (wearer) { wear(wearer, n, note, k); }
  }
  if (st.pass === "backward") { st.parts.forEach((p) => overlay(pane, `${p.to}-${st.node}-${p.pos}`, "flow")); }
  const ended = view(pane).paths.filter((p) => st.parts.some((q) => q.to === p.leaf && q.n === q.of));
  const lost = (way) => way.coef === 0, missing = ended.flatMap((p) => p.paths.filter(lost));
  (pane !== main() ? [] : S.way ? [S.way] : missing).forEach((way) => way.nodes.slice(1).forEach((to, i) => {
    const edge = view().edges.find((e) => e[0] === to && e[1] === way.nodes[i]);
    overlay(pane, edge.join("-"), lost(way) ? "way lost" : "way");
  }));
};

/* --- the panel --- */
const heading = (text, name = "") => el("h3", { class: name }, text), cap = (text) => el("p", { class: "cap" }, text);
const judgement = (id) => {
  const { verdict } = view().notes[id] || {};
  if (!verdict) { return []; }
  const title = `the gradient of ${view().nodes[id].symbol}: ${verdict.ok ? "✓ right" : "✗ wrong"}`;
  const tables = verdict.tables.map(([caption, a]) => array(a, caption));
  return [heading(title, verdict.ok ? "right" : "wrong"), ...verdict.say.map((text) => el("pre", {}, text)),
    el("div", { class: "equation" }, ...tables)];
};
const share = (n, p) => {
  const line = el("div", { class: "equation" }), sign = (text) => el("span", { class: "sign" }, text);
  if (p.local !== null) { line.append(array(n.grad, "g"), sign("·"), array(p.local, "local derivative"), sign("=")); }
  if (p.raw !== null) { line.append(array(p.raw, "product"), sign("→ Σ →")); }
  line.append(array(p.part, p.of > 1 ? `share ${p.n} of ${p.of}` : "gradient"));
  const sum = `sum of ${p.n} shares${p.n === p.of ? ": the gradient" : ", so far"}`;
  return [heading(`to ${view().nodes[p.to].symbol}: ${p.rule}`), line, p.n > 1 ? array(p.total, sum) : ""];
};
const paths = (p) => {
  const name = (i) => view().nodes[i].symbol;
  const ways = p.paths.flatMap((way) => {
    const times = way.coef === undefined ? "" : ` × ${way.coef === null ? "any: its term is 0" : way.coef.toFixed(2)}`;
    const b = el("button", { type: "button", class: "path", "aria-pressed": S.way === way }, way.label + times);
    b.addEventListener("click", () => {
      const at = [...panel.querySelectorAll(".path")].indexOf(b);
      S.way = S.way === way ? null : way;
      show();
      panel.querySelectorAll(".path")[at].focus({ preventScroll: true });
    });
    return [b, array(way.part, way.nodes.map(name).join(" → "))];
  });
  const title = `${p.paths.length} paths to ${name(p.leaf)}, which add up to its gradient`;
  return [heading(title), ...ways, array(p.sum, "their sum")];
};
const details = (chosen = S.sel) => {
  const st = step(), id = chosen ?? st.node, k = known(main()), n = view().nodes[id];
  const reached = chosen === null ? st.parts.map((p) => p.to) : [];
  if (st.pass === "start" && chosen === null) {
    const leaves = view().nodes.filter((leaf) => leaf.op === null);
    panel.replaceChildren(el("h2", {}, "Leaves"), ...leaves.map((leaf) => array(leaf.value, leaf.symbol)));
    return;
  }
  const out = n ? [el("h2", {}, n.formula ? `${n.symbol} = ${n.formula}` : n.symbol)] : [];
  [id, ...reached].filter(k.done).forEach((i) => out.push(...judgement(i)));
  if (n) { out.push(k.values.has(id) ? array(n.value, "value") : cap("value: not computed yet")); }
  const got = k.grads.get(id);
  if (chosen === null && st.pass === "backward") {
    if (n) { out.push(array(n.grad, "incoming gradient g")); }
    st.parts.forEach((p) => out.push(...share(n || { grad: null }, p)));
  } else if (got) {
    out.push(array(got.total, k.done(id) ? "gradient" : `gradient so far, ${got.n} of ${got.of} shares`));
  } else { out.push(cap(n.grad === null ? "gradient: none" : "gradient: not computed yet")); }
  view().paths.filter((p) => k.done(p.leaf) && [id, ...reached].includes(p.leaf)).forEach((p) => out.push(...paths(p)));
  const note = view().notes[id] || {};
  if (S.ulp && note.ulp && k.values.has(id)) {
    out.push(heading("Largest error, in units in the last place"), ...errors(note, k.done(id)).map((what) => {
      const { own, other, apart } = note.ulp[what], names = [main(), panes[1 - S.pane]].map((pane) => view(pane).name);
      const both = other === undefined ? "" : `, ${names[1]} ${ulp(other)}, apart ${ulp(apart)}`;
      return el("p", {}, `${what === "grad" ? "gradient" : what}: ${names[0]} ${ulp(own)}${both}`);
    }));
  }
  panel.replaceChildren(...out);
};

/* --- stepping --- */
const match = (i, j, id) => {
  const twin = (v) => D.twin[D.views[v].name];
  if (i === j || id === null || id === undefined) { return id; }
  if (i) { return match(0, j, twin(i)[id]); }
  return j === 1 ? twin(0)[id] : D.views[j].nodes.filter((n) => twin(j)[n.id] === id).map((n) => n.id).pop();
};
const stepIn = (j) => {
  const steps = D.views[j].steps, st = step(), id = match(main().view, j, st.node);
  if (main().step === end()) { return steps.length - 1; }
  const to = steps.findIndex((s) => s.pass === st.pass && s.node === id);
  return to < 0 ? Math.max(0, steps.findIndex((s) => s.pass === st.pass)) : to;
};
const show = () => {
  const st = step(), at = main().step, li = list.children[at];
  panes.forEach((pane) => {
    if (pane !== main()) { pane.step = stepIn(pane.view); }
    pane.stage.classList.toggle("main", pane === main());
    paint(pane);
    follow(pane);
  });
  app.dataset.step = slider.value = at;
  slider.setAttribute("aria-valuetext", `step ${at} of ${end()}: ${st.say}`);
  $("count").textContent = `${at} / ${end()} ${st.pass}`;
  if ($("say").textContent !== st.say) { $("say").textContent = st.say; }
  list.querySelectorAll("[aria-current]").forEach((e) => e.removeAttribute("aria-current"));
  li.setAttribute("aria-current", "step");
  if ($("all").open) { list.scrollTop = li.offsetTop - list.offsetTop - list.clientHeight / 2; }
  details();
};
const release = (more) => Object.assign(S, { sel: null, way: null }, more);
const go = (to) => { release({ was: null }); main().step = Math.max(0, Math.min(end(), to)); show(); };
const seed = () => { const i = view().steps.findIndex((s) => s.pass === "seed"); return i < 0 ? end() + 1 : i; };
const refresh = () => {
  slider.max = end();
  list.replaceChildren(...view().steps.map((s) => el("li", {}, s.say)));
  if (!D.beside) { drawn.forEach((d, i) => { d.box.hidden = i !== main().view; }); }
  $("views").value = main().view;
  act("open").textContent = main().view ? "Close the fused node" : "Open the fused node";
  act("open").setAttribute("aria-expanded", main().view > 0);
  panes.forEach((pane) => zoom(pane, 0));
};
const enter = (j) => {
  const to = S.was && S.was.view === j ? S.was.step : stepIn(j), was = { view: main().view, step: main().step };
  main().view = j;
  refresh();
  go(to);
  S.was = was;
};
const toPane = (k) => { if (k !== S.pane) { release({ pane: k }); refresh(); } };
const choose = (id) => { S.sel = id; show(); drawn[main().view].nodes.get(id)[0].focus({ preventScroll: true }); };

/* --- size and place: a factor of 0 fits what stays readable, -1 fits all --- */
const zoom = (pane, factor) => {
  const { svg, size: [w, h] } = drawn[pane.view], { clientWidth: W, clientHeight: H } = pane.stage;
  const fit = Math.min((W - 14) / w, (H - 14) / h);
  if (!(fit > 0)) { return; }
  const wanted = factor === 0 ? Math.min(1.35, Math.max(fit, 1)) : Math.min(4, Math.max(0.05, pane.scale * factor));
  pane.scale = factor < 0 ? fit : wanted;
  svg.style.width = `${w * pane.scale}px`;
  svg.style.height = `${h * pane.scale}px`;
};
const follow = (pane) => {
  const id = pane === main() && S.sel !== null ? S.sel : step(pane).node, e = (drawn[pane.view].nodes.get(id) || [])[0];
  if (!e) { return; }
  const a = e.getBoundingClientRect(), b = pane.stage.getBoundingClientRect();
  const dx = a.left + a.width / 2 - b.left - b.width / 2, dy = a.top + a.height / 2 - b.top - b.height / 2;
  if (Math.abs(dx) > b.width * 0.32 || Math.abs(dy) > b.height * 0.32) { pane.stage.scrollBy(dx, dy); }
};
const zooms = (factor) => () => panes.forEach((pane) => { zoom(pane, factor); follow(pane); });
const play = () => {
  clearInterval(S.timer);
  S.timer = S.timer ? 0 : setInterval(() => { if (main().step < end()) { go(main().step + 1); } else { play(); } }, 1200);
  act("play").textContent = S.timer ? "Pause" : "Play";
  act("play").setAttribute("aria-pressed", S.timer > 0);
};
const press = (name) => { S[name] = !S[name]; act(name).setAttribute("aria-pressed", S[name]); };
const other = () => {
  if (D.beside) { toPane(1 - S.pane); show(); } else if (D.views.length > 1) { enter(main().view ? 0 : 1); }
};
const ACTS = [
  ["n", "next", "next step", () => go(main().step + 1)], ["p", "back", "previous step", () => go(main().step - 1)],
  ["Home", "first", "first step", () => go(0)], ["End", "last", "last step", () => go(end())],
  ["f", "forward", "end of the forward pass", () => go(seed() - 1)],
  ["b", "backward", "start of the backward pass", () => go(seed())], [" ", "play", "play or pause", play],
  ["o", "open", "open or close the fused node; change sides", other],
  ["c", "ulp", "rounding errors", () => { press("ulp"); show(); }],
  ["+", "in", "larger", zooms(1.25)], ["-", "out", "smaller", zooms(0.8)], ["0", "fit", "whole graph", zooms(-1)],
  ["", "keys", "", () => press("keys")], ["?", "help", "this help", () => $("help").showModal()],
  ["arrows", "", "walk the graph"], ["Enter", "", "go to the node's step"], ["Esc", "", "let go"],
];
const neighbour = (id, key) => {
  const ends = (from, to, n) => view().edges.filter((e) => e[from] === n).map((e) => e[to]);
  const inputs = ends(1, 0, id), readers = ends(0, 1, id), near = readers.length ? ends(1, 0, readers[0]) : [];
  if (key === "ArrowUp" || key === "ArrowDown") { return (key === "ArrowUp" ? inputs : readers)[0]; }
  const all = near.length > 1 ? near : view().nodes.map((n) => n.id), by = key === "ArrowRight" ? 1 : all.length - 1;
  return all[(all.indexOf(id) + by) % all.length];
};
const nodeOf = (e) => { const at = e.target.closest && e.target.closest("[data-node]"); return at ? Number(at.dataset.node) : null; };
document.addEventListener("keydown", (e) => {
  const id = nodeOf(e), own = e.target.matches("input,button,select,summary") && /^( |Home|End)$/.test(e.key);
  const found = ACTS.find(([key]) => key === (e.key === "=" ? "+" : e.key));
  if (e.ctrlKey || e.metaKey || e.altKey || $("help").open) { return; }
  if (e.key === "Escape") { release(); show(); return; }
  if (id !== null && e.key.startsWith("Arrow")) { choose(neighbour(id, e.key) ?? id);
  } else if (id !== null && e.key === "Enter") {
    go(view().steps.findIndex((s) => s.pass === "forward" && s.node === id));
  } else if (S.keys && !own && found && found[3]) { found[3](); } else { return; }
  e.preventDefault();
});
ACTS.forEach(([key, name, text, run]) => {
  if (text) { $("help").querySelector("dl").append(el("dt", {}, key === " " ? "space" : key), el("dd", {}, text)); }
  if (name && act(name)) { act(name).addEventListener("click", run); }
});
slider.addEventListener("input", () => go(Number(slider.value)));
list.addEventListener("click", (e) => { const i = [...list.children].indexOf(e.target); if (i >= 0) { go(i); } });
$("views").addEventListener("change", (e) => enter(Number(e.target.value)));
panes.forEach((pane, k) => {
  const hover = (chosen) => (e) => { if (nodeOf(e) !== null && S.sel === null && pane === main()) { details(chosen(e)); } };
  pane.stage.addEventListener("pointerover", hover(nodeOf));
  pane.stage.addEventListener("pointerout", hover(() => null));
  pane.stage.addEventListener("click", (e) => {
    toPane(k);
    if (nodeOf(e) === null) { show(); } else { choose(nodeOf(e)); }
  });
  pane.stage.addEventListener("wheel", (e) => {
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(pane, e.deltaY > 0 ? 1 / 1.15 : 1.15); }
  }, { passive: false });
  new ResizeObserver(() => { if (!pane.scale) { zoom(pane, 0); show(); } }).observe(pane.stage);
});
addEventListener("beforeprint", () => { $("all").open = true; });

app.classList.toggle("beside", D.beside);
act("open").hidden = D.beside || D.views.length < 2;
act("ulp").hidden = !D.views.some((v) => Object.values(v.notes).some((note) => note.ulp));
$("views").hidden = D.beside || D.views.length < 3;
$("views").append(...D.views.map((v, i) => el("option", { value: i }, v.name)));
$("all").open = false;
refresh();
const wrong = (p) => p.n === p.of && ((view().notes[p.to] || {}).verdict || { ok: true }).ok === false;
go(view().steps.findIndex((s) => s.parts.some(wrong)));
})();
