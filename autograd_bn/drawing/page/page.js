"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id), $$ = (query, root = document) => [...root.querySelectorAll(query)];
const app = $("app"), panel = $("panel"), slider = $("slider"), list = $("steps");
const act = (name) => $$(`[data-do=${name}]`)[0];
/* What is set anew is styled anew, even where it is the same. */
const set = (e, attributes) => Object.entries(attributes).forEach(([name, value]) => {
  if (e.getAttribute(name) !== String(value)) { e.setAttribute(name, value); }
});
const make = (ns) => (tag, attributes, ...children) => {
  const e = document.createElementNS(ns, tag);
  set(e, attributes);
  e.append(...children);
  return e;
};
const el = make("http://www.w3.org/1999/xhtml"), shape = make("http://www.w3.org/2000/svg");

/* What is shown: the pane in front, the chosen node, the path that is lit; what arrives is hidden by a veil. */
const S = { pane: 0, sel: null, way: null, was: null, ulp: true, keys: true, hide: false, veil: false, timer: 0, fold: D.fold };
/* A pane shows one view at one step; a comparison has two of them. */
const panes = (D.beside ? [0, 1] : [D.start]).map((i) => ({ view: i, step: 0, scale: 0 }));
const stages = $$(".stage").map((stage) => ({ stage, drawings: $$("svg", stage).map((svg) => ({
  svg,
  size: svg.getAttribute("viewBox").split(" ").slice(2).map(Number),
  nodes: Map.groupBy($$("[data-node]", svg), (e) => Number(e.dataset.node)),
})) }));
const main = () => panes[S.pane], view = (pane = main()) => D.views[pane.view];
/* The drawing that a pane shows: in full, or with its repeats folded. */
const folded = (pane) => S.fold && view(pane).repeats.length > 0;
const drawing = (pane = main()) => stages[pane.view].drawings[folded(pane) ? 1 : 0];
/* Where a node is in a repeat: the repeat's blocks, its own among them, and its place in that. */
const spots = D.views.map((v) => new Map(v.repeats.flatMap((blocks) => (
  blocks.flatMap((ids, block) => ids.map((id, i) => [id, { blocks, block, i }]))))));
const spot = (pane, id) => folded(pane) ? spots[pane.view].get(id) : undefined;
/* The block that each folded repeat stands for: of the chosen node, else the one that was worked on last. */
const settle = (pane) => {
  const chosen = pane === main() && S.sel !== null ? [S.sel] : [];
  const worked = view(pane).steps.slice(0, pane.step + 1).map((s) => s.node);
  const met = [...worked, ...chosen].map((id) => spots[pane.view].get(id)).filter(Boolean);
  pane.standing = new Map(met.map(({ blocks, block }) => [blocks, block]));
};
const standing = (pane, blocks) => pane.standing.get(blocks) || 0;
/* The shapes of a node; what a folded repeat does not stand for now has none in it. */
const shapes = (pane, id) => {
  const at = spot(pane, id), { nodes } = drawing(pane), own = nodes.get(id) || [];
  if (!at) { return own; }
  const inner = at.block === standing(pane, at.blocks) ? nodes.get(at.blocks[0][at.i]) : [];
  return [...inner, ...(at.block ? own : [])];
};
const step = (pane = main()) => view(pane).steps[pane.step], end = () => view().steps.length - 1;
const known = (pane) => {
  const values = new Set(view(pane).nodes.filter((n) => n.op === null).map((n) => n.id)), grads = new Map();
  for (const s of view(pane).steps.slice(0, pane.step + 1)) {
    if (s.pass === "forward") { values.add(s.node); }
    s.parts.forEach((p) => grads.set(p.to, p));
  }
  return { values, grads, done: (id) => grads.has(id) && grads.get(id).n === grads.get(id).of };
};

/* --- numbers and arrays --- */
const cap = (...parts) => el("p", { class: "cap" }, ...parts);
const SHADES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxy", BARS = "▁▂▃▄▅▆▇█";
const number = (x) => {
  const v = Number(x), size = Math.abs(v);
  if (typeof x === "string" && !Number.isFinite(v)) { return x; }
  const text = size && (size >= 1e5 || size < 1e-3) ? v.toExponential(2) : String(Number(v.toPrecision(4)) + 0);
  return text.replace(/-/g, "−");
};
const ratio = (x) => { const [a, b] = String(x).split("/").map(Number); return b ? a / b : a; };
const size = (dims) => dims.join("×") || "scalar";
const largest = (numbers) => Math.max(0, ...numbers.filter(Number.isFinite).map(Math.abs));
const EPS = { float16: 1e-3, float32: 1.2e-7, float64: 2.3e-16 };
const table = (numbers, columns, texts, attributes, top, noise = 0) => {
  const rows = [];
  numbers.forEach((v, i) => {
    if (i % columns === 0) { rows.push(el("tr", {})); }
    const e = el("td", texts ? { title: texts[i] } : {}, texts ? number(texts[i]) : "");
    const share = Math.round(45 * Math.min(1, Math.abs(v) / top)), hue = v > 0 ? "pos" : "neg";
    if (share) { e.style.background = `color-mix(in srgb, var(--${hue}) ${share}%, transparent)`; }
    e.classList.toggle("noise", v !== 0 && Math.abs(v) < noise);
    rows[rows.length - 1].append(e);
  });
  return el("table", attributes, ...rows);
};
/* The largest number of the arrays that are to share one colour scale, and that scale's key. */
const peak = (...indices) => Math.max(...indices.map((i) => largest((D.arrays[i].data || []).map(ratio))));
const scale = (top) => top ? cap(el("span", { class: "scale" }, `${number(-top)} … 0 … ${number(top)}`),
  " one colour scale for what is added; grey is rounding noise beside the rest") : "";
const array = (index, caption, top = 0) => {
  if (index === null) { return ""; }
  const a = D.arrays[index], title = cap(`${caption}  ${size(a.shape)} ${a.dtype}`);
  if (a.data) {
    const numbers = a.data.map(ratio), noise = 16 * top * (EPS[a.dtype] || 0);
    const columns = a.shape[a.shape.length - 1] || 1, most = top || largest(numbers) || 1;
    const shown = table(numbers, columns, a.data, { "aria-label": caption }, most, noise);
    return el("div", { class: "array" }, title, shown);
  }
  const { mean, sd, min, max, zeros, nonfinite } = a.stats, listed = (part) => part.map(number).join(", ");
  const figures = `mean ${number(mean)}, sd ${number(sd)}, ${number(min)} … ${number(max)}`, looks = [];
  if (a.tile) {
    const { shades, columns } = a.tile, most = Math.max(...a.hist);
    const label = `means of ${shades.length / columns} by ${columns} blocks`, middle = (SHADES.length - 1) / 2;
    const tile = table([...shades].map((letter) => SHADES.indexOf(letter) - middle), columns, null,
      { class: "tile", role: "img", "aria-label": label }, middle);
    const bars = a.hist.map((n) => BARS[Math.ceil(7 * n / most)]).join("");
    looks.push(el("div", { class: "equation" }, tile, el("span", { class: "sign", role: "img", "aria-label": "histogram" }, bars)));
  }
  return el("div", { class: "array" }, title, el("p", {}, figures), cap(`zeros ${zeros}, not finite ${nonfinite}`),
    ...looks, cap(`${listed(a.first)} … ${listed(a.last)}`));
};

/* --- the graph at a step --- */
const overlay = (pane, to, position, name) => {
  const at = spot(pane, to), head = at ? at.blocks[0][at.i] : to;
  if (at && at.block !== standing(pane, at.blocks)) { return; }
  const e = $$(`[data-edge$="-${head}-${position}"]`, drawing(pane).svg)[0];
  if (e) { e.append(shape("path", { d: e.querySelector("path").getAttribute("d"), class: `${name} extra` })); }
};
/* What is fed has the label of an arrow above it. */
const badge = (e, lines, name, fed) => {
  const b = e.querySelector("polygon,ellipse,path").getBBox();
  const width = 6.6 * Math.max(...lines.map((line) => line.length)) + 8, height = 13 * lines.length + 3;
  const x = b.x + b.width - (fed ? Math.min(width / 2, 12) : width / 2), y = b.y - height + 3;
  e.append(shape("g", { class: `badge extra ${name}` }, shape("rect", { x, y, width, height, rx: 4 }),
    ...lines.map((line, i) => shape("text", { x: x + width / 2, y: y + 12 + 13 * i }, line))));
};
const ulp = (x) => x === null ? "∞" : x < 1000 ? String(Number(x.toPrecision(2))) : x.toExponential(0);
const errors = (note, k, id) => S.ulp && note.ulp && k.values.has(id)
  ? Object.entries(note.ulp).filter(([what]) => what === "value" || k.done(id)).reverse() : [];
const paint = (pane) => {
  settle(pane);
  const { svg } = drawing(pane), st = step(pane), k = known(pane), sel = pane === main() ? S.sel : null;
  $$(".extra", svg).forEach((e) => e.remove());
  for (const e of $$("[data-repeat]", svg)) {
    const blocks = view(pane).repeats[e.dataset.repeat], at = spot(pane, st.node), now = (at || {}).blocks === blocks;
    e.classList.toggle("now", now);
    const said = `${standing(pane, blocks) + 1} of ${blocks.length}`;
    set(e, { role: "button", tabindex: 0, "aria-label": `${e.textContent}, ${said}: open the repeats` });
    badge(e, [said], "");
  }
  for (const n of view(pane).nodes) {
    const note = view(pane).notes[n.id] || {}, { verdict } = note, worn = shapes(pane, n.id);
    const got = k.grads.get(n.id), done = k.done(n.id), state = [n.symbol, n.op || n.kind, size(n.shape)];
    const gets = S.veil && st.parts.some((p) => p.to === n.id), now = st.node === n.id;
    const among = spot(pane, n.id);
    if (among) { state.push(`${among.block + 1} of ${among.blocks.length}`); }
    const flags = { nov: !k.values.has(n.id) || (S.veil && now && st.pass === "forward"), nog: !done || gets };
    Object.assign(flags, { now, sel: sel === n.id });
    flags.bad = done && verdict !== undefined && !verdict.ok;
    if (flags.nov) { state.push("not computed yet"); }
    if (got) { state.push(done ? "gradient complete" : `gradient ${got.n} of ${got.of} shares`); }
    worn.forEach((e, i) => {
      Object.entries(flags).forEach(([name, on]) => e.classList.toggle(name, on));
      const tabindex = i === 0 && n.id === (sel ?? st.node ?? 0) ? 0 : -1;
      set(e, { role: "button", "aria-label": state.join(", "), tabindex });
    });
    const wearer = worn.find((e) => e.querySelector(".v")) || worn[0], shown = errors(note, k, n.id);
    if (!wearer || gets) { continue; }
    if (got && !done) { badge(wearer, [`∂ ${got.n} of ${got.of}`], "", n.op); }
    if (verdict && done) { badge(wearer, [verdict.ok ? "✓ right" : "✗ wrong"], verdict.ok ? "ok" : "no", n.op); }
    if (shown.length) {
      const worst = Math.max(...shown.map(([, { own }]) => own ?? Infinity));
      badge(wearer, shown.map(([what, { own, other, apart }]) => (
        `${what === "grad" ? "∂ " : ""}${ulp(own)}${other === undefined ? "" : ` | ${ulp(other)} Δ${ulp(apart)}`}`
      )), `b${[0.5, 1, 4, 64].filter((limit) => worst > limit).length}`, n.op);
    }
  }
  if (st.pass === "backward") { st.parts.forEach((p) => overlay(pane, st.node, p.pos, "flow")); }
  const ended = view(pane).paths.filter((p) => st.parts.some((q) => q.to === p.leaf && q.n === q.of));
  const lost = (way) => way.coef === 0, missing = ended.flatMap((p) => p.paths.filter(lost));
  (pane !== main() ? [] : S.way ? [S.way] : missing).forEach((way) => way.nodes.slice(1).forEach((to, i) => {
    const edge = view().edges.find((e) => e[0] === to && e[1] === way.nodes[i]);
    overlay(pane, edge[1], edge[2], lost(way) ? "way lost" : "way");
  }));
};

/* --- the panel --- */
const heading = (text, name = "") => el("h3", { class: name }, text);
const equation = (...parts) => el("div", { class: "equation" }, ...parts);
const judgement = (id) => {
  const { verdict } = view().notes[id] || {};
  if (!verdict) { return []; }
  const title = `the gradient of ${view().nodes[id].symbol}: ${verdict.ok ? "✓ right" : "✗ wrong"}`;
  const top = peak(...verdict.tables.map(([, a]) => a));
  const tables = verdict.tables.map(([caption, a]) => array(a, caption, top));
  const said = verdict.say.map((text) => el("pre", {}, text));
  return [heading(title, verdict.ok ? "right" : "wrong"), ...said, equation(...tables), tables.length ? scale(top) : ""];
};
const share = (p, g) => {
  const sign = (text) => el("span", { class: "sign" }, text);
  const local = p.local === null ? [] : [array(g, "g"), sign("·"), array(p.local, "local derivative"), sign("=")];
  const raw = p.raw === null ? [] : [array(p.raw, "product"), sign("→ Σ →")];
  const top = p.n > 1 ? peak(p.part, p.total) : 0;
  const part = array(p.part, p.of > 1 ? `share ${p.n} of ${p.of}` : "gradient", top);
  const sum = `sum of ${p.n} shares${p.n === p.of ? ": the gradient" : ", so far"}`;
  const title = heading(`to ${view().nodes[p.to].symbol}: ${p.rule}`);
  return [title, equation(...local, ...raw, part), p.n > 1 ? array(p.total, sum, top) : "", scale(top)];
};
const paths = (p) => {
  const name = (i) => view().nodes[i].symbol, top = peak(p.sum, ...p.paths.map((way) => way.part));
  const ways = p.paths.flatMap((way) => {
    const other = way.coef === "NaN" ? "a factor for each feature" : "any: its term is 0";
    const times = way.coef === undefined ? "" : ` × ${Number.isFinite(way.coef) ? way.coef.toFixed(2) : other}`;
    const b = el("button", { type: "button", class: "path", "aria-pressed": S.way === way }, way.label + times);
    b.addEventListener("click", (e) => {
      const at = $$(".path", panel).indexOf(b);
      S.way = S.way === way ? null : way;
      show();
      if (!e.detail) { $$(".path", panel)[at].focus({ preventScroll: true }); }
    });
    return [b, array(way.part, way.nodes.map(name).join(" → "), top)];
  });
  const title = `${p.paths.length} paths to ${name(p.leaf)}, which add up to its gradient`;
  return [heading(title), ...ways, array(p.sum, "their sum", top), scale(top)];
};
const details = () => {
  const st = step(), id = S.sel ?? st.node, k = known(main()), n = view().nodes[id], got = k.grads.get(id);
  if (id === null && st.pass === "start") {
    const leaves = view().nodes.filter((leaf) => leaf.op === null);
    return [el("h2", {}, "Leaves"), ...leaves.map((leaf) => array(leaf.value, leaf.symbol))];
  }
  const now = S.sel === null ? st.parts : [], reached = [id, ...now.map((p) => p.to)].filter(k.done);
  const out = [], arrived = S.veil ? [] : reached.flatMap(judgement);
  if (n) {
    const value = k.values.has(id) ? array(n.value, "value") : cap("value: not computed yet");
    arrived.unshift(el("h2", {}, n.formula ? `${n.symbol} = ${n.formula}` : n.symbol));
    out.push(S.veil && st.pass === "forward" ? cap("value: what do you expect?") : value);
  }
  if (S.sel === null && st.pass === "backward") {
    const g = n ? n.grad : null;
    out.push(array(g, "incoming gradient g"), ...(S.veil ? [] : now.flatMap((p) => share(p, g))));
  } else if (got) {
    out.push(array(got.total, k.done(id) ? "gradient" : `gradient so far, ${got.n} of ${got.of} shares`));
  } else { out.push(cap(`gradient: ${n.grad === null ? "none" : "not computed yet"}`)); }
  out.unshift(...arrived);
  if (S.veil) { return out; }
  view().paths.filter((p) => reached.includes(p.leaf)).forEach((p) => out.push(...paths(p)));
  const shown = errors(view().notes[id] || {}, k, id).map(([what, { own, other, apart }]) => {
    const both = other === undefined ? "" : `, ${view(panes[1 - S.pane]).name} ${ulp(other)}, apart ${ulp(apart)}`;
    return el("p", {}, `${what === "grad" ? "gradient" : what}: ${view().name} ${ulp(own)}${both}`);
  });
  return shown.length ? [...out, heading("Largest error, in units in the last place"), ...shown] : out;
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
  const st = step(), at = main().step, li = list.children[at], [passing, arriving] = st.say.split(": ");
  const say = S.veil && st.pass === "backward" && arriving ? `${passing}: what arrives at its inputs?` : st.say;
  panes.forEach((pane) => {
    if (pane !== main()) { pane.step = stepIn(pane.view); }
    stages[pane.view].stage.classList.toggle("main", pane === main());
    paint(pane);
    follow(pane);
  });
  app.dataset.step = slider.value = at;
  slider.setAttribute("aria-valuetext", `step ${at} of ${end()}: ${say}`);
  const among = spots[main().view].get(st.node), block = among ? `, ${among.block + 1} of ${among.blocks.length}` : "";
  $("count").textContent = `${at} / ${end()} ${st.pass}${block}`;
  if ($("say").textContent !== say) { $("say").textContent = say; }
  $$("[aria-current]", list).forEach((e) => e.removeAttribute("aria-current"));
  li.setAttribute("aria-current", "step");
  if ($("all").open) { list.scrollTop = li.offsetTop - list.offsetTop - list.clientHeight / 2; }
  panel.replaceChildren(...details());
  for (const e of $$("[data-line]")) {
    const lit = [st.line, st.also].includes(Number(e.dataset.line));
    e.toggleAttribute("aria-current", lit);
    const column = e.closest("div");
    if (lit) { column.scrollTop = e.offsetTop - column.clientHeight / 2; }
  }
};
const release = (more) => Object.assign(S, { sel: null, way: null }, more);
const go = (to) => {
  release({ was: null, veil: S.hide && to > main().step });
  main().step = Math.max(0, Math.min(end(), to));
  show();
};
const next = () => { if (S.veil) { S.veil = false; show(); } else { go(main().step + 1); } };
const seed = () => { const i = view().steps.findIndex((s) => s.pass === "seed"); return i < 0 ? end() + 1 : i; };
const refresh = () => {
  slider.max = end();
  list.replaceChildren(...view().steps.map((s) => el("li", {}, s.say)));
  if (!D.beside) { stages.forEach(({ stage }, i) => { stage.hidden = i !== main().view; }); }
  $("views").value = main().view;
  act("open").textContent = main().view ? "Close fused" : "Open fused";
  act("fold").textContent = S.fold ? "Open repeats" : "Fold repeats";
  for (const pane of panes) {
    stages[pane.view].drawings.forEach(({ svg }) => svg.toggleAttribute("hidden", svg !== drawing(pane).svg));
  }
  const symbols = [...new Set(view().nodes.map((n) => n.symbol))];
  $("names").replaceChildren(...symbols.map((name) => el("option", { value: name })));
  zooms(0);
  chart();
  frame();
};
const enter = (j) => {
  const to = S.was && S.was.view === j ? S.was.step : stepIn(j), was = { view: main().view, step: main().step };
  Object.assign(main(), { view: j, step: to });
  refresh();
  go(to);
  S.was = was;
};
const toPane = (k) => { if (k !== S.pane) { release({ pane: k }); refresh(); } };
const choose = (id) => { S.sel = id; show(); shapes(main(), id)[0].focus({ preventScroll: true }); };

/* --- size and place: a factor of 0 fits what stays readable, the width by up to a fifth less; -1 fits all --- */
const zoom = (pane, factor) => {
  const { stage } = stages[pane.view], { svg, size: [w, h] } = drawing(pane);
  const [across, down] = D.beside ? [82, 40] : [14, 14];
  const wide = (stage.clientWidth - across) / w, fit = Math.min(wide, (stage.clientHeight - down) / h);
  if (!(fit > 0)) { return; }
  const usual = app.classList.contains("lecture") ? Math.max(1, innerWidth / 1100) : 1;
  const readable = Math.min(usual, Math.max(wide, 0.8 * usual));
  const whole = Math.min(1.35 * usual, Math.max(fit, readable));
  const wanted = factor === 0 ? whole : Math.min(4, Math.max(0.05, pane.scale * factor));
  pane.scale = factor < 0 ? fit : wanted;
  Object.assign(svg.style, { width: `${w * pane.scale}px`, height: `${h * pane.scale}px` });
};
const follow = (pane) => {
  const { stage } = stages[pane.view], id = pane === main() && S.sel !== null ? S.sel : step(pane).node;
  const [e] = shapes(pane, id);
  if (!e) { return; }
  const a = e.getBoundingClientRect(), b = stage.getBoundingClientRect();
  const dx = a.left + a.width / 2 - b.left - b.width / 2, dy = a.top + a.height / 2 - b.top - b.height / 2;
  if (Math.abs(dx) > b.width * 0.32 || Math.abs(dy) > b.height * 0.32) { stage.scrollBy(dx, dy); }
};
/* A small map of a large graph, with a frame around what is seen. */
const MAPPED = 60, map = $("map");
const frame = () => {
  const a = drawing().svg.getBoundingClientRect(), b = stages[main().view].stage.getBoundingClientRect();
  const x = (b.left - a.left) / main().scale, y = (b.top - a.top) / main().scale;
  if (map.lastChild) { set(map.lastChild, { x, y, width: b.width / main().scale, height: b.height / main().scale }); }
};
const chart = () => {
  const { svg, nodes, size: [w, h] } = drawing(), a = svg.getBoundingClientRect();
  map.toggleAttribute("hidden", D.beside || nodes.size <= MAPPED);
  if (D.beside || nodes.size <= MAPPED) { return; }
  const at = (length) => (length / main().scale).toFixed(0);
  const boxes = [...nodes.values()].flat().map((e) => e.getBoundingClientRect());
  const d = boxes.map((b) => `M${at(b.left - a.left)} ${at(b.top - a.top)}h${at(b.width)}v${at(b.height)}h-${at(b.width)}z`);
  set(map, { viewBox: `0 0 ${w} ${h}` });
  map.replaceChildren(shape("path", { d: d.join("") }), shape("rect", {}));
};
const zooms = (factor) => { panes.forEach((pane) => { zoom(pane, factor); follow(pane); }); frame(); };
const press = (name, on) => act(name).setAttribute("aria-pressed", S[name] = on);
const play = () => {
  clearInterval(S.timer);
  press("play", !S.play);
  act("play").textContent = S.play ? "Pause" : "Play";
  if (S.play) { S.timer = setInterval(() => { if (main().step < end() || S.veil) { next(); } else { play(); } }, 1200); }
};
const fold = () => { S.fold = !S.fold; refresh(); show(); };
const folds = (e) => S.fold && e.target.closest("[data-repeat]") !== null;
const other = () => {
  if (D.beside) { toPane(1 - S.pane); show(); } else if (D.views.length > 1) { enter(main().view ? 0 : 1); }
};

const lecture = () => {
  const on = app.classList.toggle("lecture"), root = document.documentElement;
  act("lecture").setAttribute("aria-pressed", on);
  if (on && root.requestFullscreen) { root.requestFullscreen().catch(() => {}); }
  if (!on && document.fullscreenElement) { document.exitFullscreen(); }
  zooms(0);
};
const jump = (id) => {
  const to = view().steps.findIndex((s) => s.pass === "forward" && s.node === id);
  if (to < 0) { choose(id); } else { go(to); }
};
/* The first node after the current one that has the word in its name or operation. */
const seek = (word) => {
  const at = S.sel ?? step().node ?? -1, { nodes } = view();
  const found = [...nodes.slice(at + 1), ...nodes.slice(0, at + 1)].find((n) => (
    `${n.symbol} ${n.op || n.kind}`.toLowerCase().includes(word.toLowerCase())));
  if (found) { jump(found.id); $("find").focus(); }
};

/* --- keys, buttons, mouse --- */
const ALIAS = { ArrowRight: "n", ArrowDown: "n", PageDown: "n", ArrowLeft: "p", ArrowUp: "p", PageUp: "p", "=": "+" };
const ACTS = [
  ["Home", "first", "|◀", "first step", () => go(0)],
  ["p", "back", "◀", "previous step", () => go(main().step - 1)],
  [" ", "play", "Play", "play or pause", play],
  ["n", "next", "▶", "next step", next],
  ["End", "last", "▶|", "last step", () => go(end())],
  ["[", "", "", "end of the forward pass", () => go(seed() - 1)],
  ["]", "", "", "start of the backward pass", () => go(seed())],
  ["o", "open", "", "open or close the fused node; change sides", other],
  ["r", "fold", "", "open or fold repeats", fold],
  ["f", "lecture", "Lecture", "lecture mode: full screen, large text", lecture],
  ["h", "hide", "Predict", "hide what arrives until the next key", () => { press("hide", !S.hide); S.veil = false; show(); }],
  ["c", "ulp", "ulp", "rounding errors", () => { press("ulp", !S.ulp); $("badges").hidden = !S.ulp; show(); }],
  ["-", "out", "−", "smaller", () => zooms(0.8)], ["0", "fit", "Fit", "whole graph", () => zooms(-1)],
  ["+", "in", "+", "larger", () => zooms(1.25)],
  ["", "keys", "Keys", "single keys on or off", () => press("keys", !S.keys)],
  ["/", "", "", "search a node; Enter goes to its step", () => $("find").focus()],
  ["?", "help", "?", "this help", () => $("keys").showModal()],
  ["arrows, PageUp, PageDown", "", "", "previous and next step"], ["shift + arrows", "", "", "walk the graph"],
  ["Enter", "", "", "go to the node's step"], ["Esc", "", "", "let go"],
];
ACTS.forEach(([key, name, label, text, run]) => {
  const called = key === " " ? "space" : key;
  if (key) { $$("dl", $("keys"))[0].append(el("dt", {}, called), el("dd", {}, text)); }
  if (name) {
    const b = el("button", { type: "button", "data-do": name, title: `${text}${key && ` (${called})`}` }, label);
    if (label && label.length < 3) { b.setAttribute("aria-label", text); }
    /* A click leaves the keys to the page; who came by Tab keeps the focus. */
    b.addEventListener("click", (e) => { run(); if (e.detail) { b.blur(); } });
    $("bar").append(b, ...(name === "last" ? [slider, $("count")] : name === "open" ? [$("views"), $("find")] : []));
  }
});
const neighbour = (id, key) => {
  const ends = (from, to) => view().edges.filter((e) => e[from] === id).map((e) => e[to]);
  const near = { ArrowUp: ends(1, 0)[0], ArrowDown: ends(0, 1)[0], ArrowLeft: id - 1, ArrowRight: id + 1 }[key];
  return view().nodes[near] ? near : id;
};
const nodeOf = (e) => {
  const there = e.target.closest("[data-node]"), id = there ? Number(there.dataset.node) : null, at = spot(main(), id);
  return at && at.block === 0 ? at.blocks[standing(main(), at.blocks)][at.i] : id;
};
document.addEventListener("keydown", (e) => {
  const id = nodeOf(e), { key } = e, single = key.length === 1 && key !== " ", arrow = key.startsWith("Arrow");
  const typing = e.target === $("find") && (single || arrow || /^( |Home|End)$/.test(key));
  const own = typing || (key === " " && e.target.matches("button,select,summary"));
  const run = (ACTS.find(([called]) => called === (ALIAS[key] || key)) || [])[4];
  if (e.ctrlKey || e.metaKey || e.altKey || $("keys").open) { return; }
  if (key === "Escape") {
    if (app.classList.contains("lecture")) { lecture(); }
    release();
    show();
    document.activeElement.blur();
  } else if (e.target === $("find") && key === "Enter") { seek(e.target.value);
  } else if (arrow && e.shiftKey && !typing) { choose(neighbour(id ?? S.sel ?? step().node ?? 0, key));
  } else if (folds(e) && key === "Enter") { fold();
  } else if (id !== null && key === "Enter") { jump(id);
  } else if (run && !own && (S.keys || !single)) { run(); } else { return; }
  e.preventDefault();
});
document.addEventListener("fullscreenchange", () => {
  if (!document.fullscreenElement && app.classList.contains("lecture")) { lecture(); }
});
slider.addEventListener("input", () => go(Number(slider.value)));
list.addEventListener("click", (e) => { const i = [...list.children].indexOf(e.target); if (i >= 0) { go(i); } });
if ($("code")) { $("code").addEventListener("click", (e) => {
  const line = Number((e.target.closest("[data-line]") || { dataset: {} }).dataset.line);
  const to = view().steps.findIndex((s) => s.line === line || s.also === line);
  if (to >= 0) { go(to); }
}); }
$("views").addEventListener("change", (e) => { enter(Number(e.target.value)); e.target.blur(); });
const sized = new ResizeObserver(() => { if (!main().scale) { zooms(0); show(); } });
stages.forEach(({ stage }, i) => {
  let drag = null;
  stage.addEventListener("pointerdown", (e) => { drag = e.pointerType === "mouse" ? { x: e.clientX, y: e.clientY } : null; });
  stage.addEventListener("pointermove", (e) => {
    if (!drag || !e.buttons) { return; }
    drag.far ||= Math.hypot(e.clientX - drag.x, e.clientY - drag.y) > 4;
    if (drag.far) { stage.setPointerCapture(e.pointerId); stage.scrollBy(-e.movementX, -e.movementY); }
  });
  stage.addEventListener("scroll", frame);
  stage.addEventListener("click", (e) => {
    if (drag && drag.far) { return; }
    if (D.beside) { toPane(i); }
    if (folds(e)) { fold(); } else if (nodeOf(e) === null) { show(); } else { choose(nodeOf(e)); }
  });
  stage.addEventListener("wheel", (e) => {
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(panes[D.beside ? i : 0], e.deltaY > 0 ? 1 / 1.15 : 1.15); }
  }, { passive: false });
  sized.observe(stage);
});
map.addEventListener("pointerdown", (e) => {
  const { stage } = stages[main().view], { svg, size: [w, h] } = drawing();
  const b = map.getBoundingClientRect(), { scale: s } = main();
  const unit = Math.min(b.width / w, b.height / h), gap = svg.offsetLeft || 0;
  const x = (e.clientX - b.left - (b.width - w * unit) / 2) / unit, y = (e.clientY - b.top - (b.height - h * unit) / 2) / unit;
  stage.scrollTo(x * s + gap - stage.clientWidth / 2, y * s - stage.clientHeight / 2);
});
addEventListener("beforeprint", () => $$("details").forEach((e) => { e.open = true; }));

app.classList.toggle("beside", D.beside);
act("open").hidden = D.beside || D.views.length < 2;
act("fold").hidden = !D.views.some((v) => v.repeats.length);
act("ulp").hidden = $("badges").hidden = !D.views.some((v) => Object.values(v.notes).some((note) => note.ulp));
["ulp", "keys"].forEach((name) => press(name, true));
["play", "hide"].forEach((name) => press(name, false));
act("lecture").setAttribute("aria-pressed", false);
$("views").hidden = D.beside || D.views.length < 3;
$("views").append(...D.views.map((v, i) => el("option", { value: i }, v.name)));
$("all").open = $("bar").hidden = false;
refresh();
const wrong = (p) => p.n === p.of && ((view().notes[p.to] || {}).verdict || { ok: true }).ok === false;
go(view().steps.findIndex((s) => s.parts.some(wrong)));
})();
