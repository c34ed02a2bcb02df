"use strict";
(() => {
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const app = $("app"), panel = $("panel"), slider = $("slider"), list = $("steps");
const NS = "http://www.w3.org/2000/svg";
const S = { pane: 0, sel: null, way: null, ulp: true, keys: true, timer: 0, was: null };
const make = (ns) => (tag, attributes, ...children) => {
  const e = document.createElementNS(ns, tag);
  for (const key in attributes) { e.setAttribute(key, attributes[key]); }
  e.append(...children.filter((child) => child !== null));
  return e;
};
const el = make("http://www.w3.org/1999/xhtml"), shape = make(NS);
const act = (name) => document.querySelector(`[data-do=${name}]`);

/* Each pane shows one view at one step; beside each other there are two, else one. */
const panes = [...document.querySelectorAll(".stage")].map((stage, k) => ({ stage, view: D.beside ? k : D.start, step: 0, scale: 0 }));
const drawn = [...document.querySelectorAll(".view")].map((box) => {
  const nodes = new Map(), edges = new Map();
  box.querySelectorAll("[data-node]").forEach((e) => { const id = Number(e.dataset.node); nodes.set(id, [...(nodes.get(id) || []), e]); });
  box.querySelectorAll("[data-edge]").forEach((e) => edges.set(e.dataset.edge, e));
  const svg = box.querySelector("svg");
  return { box, svg, nodes, edges, size: svg.getAttribute("viewBox").split(" ").slice(2).map(Number) };
});
const main = () => panes[S.pane], view = (pane = main()) => D.views[pane.view], step = (pane = main()) => view(pane).steps[pane.step];

/* --- numbers and arrays --- */
const number = (x) => {
  const v = Number(x);
  if (typeof x === "string" && !Number.isFinite(v)) { return x; }
  const size = Math.abs(v), text = v === 0 ? "0" : size >= 1e5 || size < 1e-3 ? v.toExponential(2) : String(Number(v.toPrecision(4)));
  return text.replace(/-/g, "−");
};
const ratio = (x) => { const [a, b] = String(x).split("/").map(Number); return b ? a / b : a; };
const size = (s) => s.length ? s.join("×") : "scalar";
const array = (index, caption) => {
  const box = el("div", { class: "array" });
  if (index === null || index === undefined) { return box; }
  const a = D.arrays[index];
  box.append(el("div", { class: "cap" }, `${caption}  ${size(a.shape)} ${a.dtype}`));
  if (a.data) {
    const columns = a.shape.length ? a.shape[a.shape.length - 1] : 1, values = a.data.map(ratio);
    const top = Math.max(0, ...values.filter(Number.isFinite).map(Math.abs)) || 1, table = el("table", { "aria-label": caption });
    for (let at = 0; at < values.length; at += columns) {
      const row = el("tr", {});
      if (a.shape.length > 2) { let rest = at / columns; row.append(el("th", { scope: "row" }, a.shape.slice(0, -1).reverse().map((n) => { const i = rest % n; rest = Math.floor(rest / n); return i; }).reverse().join(","))); }
      for (let i = at; i < at + columns; i++) {
        const cell = el("td", { title: String(a.data[i]) }, number(a.data[i])), share = Math.round(45 * Math.min(1, Math.abs(values[i]) / top));
        if (share) { cell.style.background = `color-mix(in srgb, var(--${values[i] > 0 ? "pos" : "neg"}) ${share}%, transparent)`; }
        row.append(cell);
      }
      table.append(row);
    }
    box.append(table);
    return box;
  }
  const s = a.stats;
  box.append(el("p", {}, `mean ${number(s.mean)}, sd ${number(s.sd)}, ${number(s.min)} … ${number(s.max)}`));
  box.append(el("p", { class: "cap" }, `zeros ${s.zeros}, not finite ${s.nonfinite}`));
  if (a.tile) {
    const { columns, of127 } = a.tile, rows = of127.length / columns, most = Math.max(...a.hist);
    const tile = shape("svg", { viewBox: `0 0 ${columns} ${rows}`, width: 150, height: Math.min(150, Math.max(12, 150 * rows / columns)), preserveAspectRatio: "none", role: "img", "aria-label": `means of ${rows} by ${columns} blocks` });
    of127.forEach((q, i) => { if (q) { tile.append(shape("rect", { x: i % columns, y: Math.floor(i / columns), width: 1, height: 1, class: q > 0 ? "pos" : "neg", "fill-opacity": Math.abs(q) / 127 })); } });
    const bars = shape("svg", { viewBox: `0 0 ${6 * a.hist.length} 40`, width: 150, height: 48, class: "bars", role: "img", "aria-label": "histogram" });
    a.hist.forEach((n, i) => bars.append(shape("rect", { x: 6 * i, y: 40 - 38 * n / most, width: 5, height: 38 * n / most })));
    box.append(el("div", { class: "equation" }, tile, bars));
  }
  box.append(el("p", { class: "cap" }, `${a.first.map(number).join(", ")} … ${a.last.map(number).join(", ")}`));
  return box;
};

/* --- the graph at a step --- */
const known = (pane) => {
  const values = new Set(view(pane).nodes.filter((n) => n.op === null).map((n) => n.id)), grads = new Map();
  for (const s of view(pane).steps.slice(0, pane.step + 1)) {
    if (s.pass === "forward") { values.add(s.node); }
    s.parts.forEach((p) => grads.set(p.to, p));
  }
  return { values, grads };
};
const overlay = (pane, edge, name) => {
  const e = drawn[pane.view].edges.get(edge);
  if (e) { e.append(shape("path", { d: e.querySelector("path").getAttribute("d"), class: `${name} extra` })); }
};
const badge = (e, lines, name) => {
  const b = e.querySelector("polygon,ellipse,path").getBBox(), width = 6.6 * Math.max(...lines.map((l) => l.length)) + 8, height = 13 * lines.length + 3;
  const x = b.x + b.width - width / 2, y = b.y - height + 6, g = shape("g", { class: `badge extra ${name}`, "aria-hidden": "true" }, shape("rect", { x, y, width, height, rx: 4 }));
  lines.forEach((line, i) => g.append(shape("text", { x: x + width / 2, y: y + 12 + 13 * i, "text-anchor": "middle" }, line)));
  e.append(g);
};
const ulp = (x) => x === null ? "∞" : x === 0 ? "0" : x < 1000 ? String(Number(x.toPrecision(2))) : x.toExponential(0);
const paint = (pane) => {
  const { nodes, svg } = drawn[pane.view], st = step(pane), k = known(pane), mine = pane === main(), focus = mine && S.sel !== null ? S.sel : st.node ?? 0;
  svg.querySelectorAll(".extra").forEach((e) => e.remove());
  for (const n of view(pane).nodes) {
    const got = k.grads.get(n.id), note = view(pane).notes[n.id] || {}, done = got && got.n === got.of;
    const state = `${n.symbol}, ${n.op || n.kind}, ${size(n.shape)}${k.values.has(n.id) ? "" : ", not computed yet"}${!got ? "" : done ? ", gradient complete" : `, gradient ${got.n} of ${got.of} shares`}`;
    const worn = nodes.get(n.id) || [], wearer = worn.find((e) => e.querySelector(".v")) || worn[0];
    worn.forEach((e, i) => {
      const c = e.classList;
      c.toggle("nov", !k.values.has(n.id)); c.toggle("nog", !done); c.toggle("now", st.node === n.id); c.toggle("sel", mine && S.sel === n.id);
      e.setAttribute("role", "button"); e.setAttribute("aria-label", state); e.setAttribute("tabindex", i === 0 && n.id === focus ? 0 : -1);
      const verdict = done && note.verdict;
      c.toggle("bad", Boolean(verdict && !verdict.ok));
      if (e !== wearer) { return; }
      if (got && !done) { badge(e, [`∂ ${got.n} of ${got.of}`], ""); }
      if (verdict) { badge(e, [verdict.ok ? "✓ right" : "✗ wrong"], verdict.ok ? "ok" : "no"); }
      if (S.ulp && note.ulp && k.values.has(n.id)) {
        const shown = ["value", "grad"].filter((which) => note.ulp[which] && (which === "value" || done)).map((which) => [which === "grad" ? "∂ " : "", note.ulp[which]]);
        const worst = Math.max(...shown.map(([, u]) => u.own === null ? Infinity : u.own));
        badge(e, shown.map(([sign, u]) => `${sign}${ulp(u.own)}${u.other === undefined ? "" : ` | ${ulp(u.other)} Δ${ulp(u.apart)}`}`), `b${[0.5, 1, 4, 64].filter((limit) => worst > limit).length}`);
      }
    });
  }
  if (st.pass === "backward") { st.parts.forEach((p) => overlay(pane, `${p.to}-${st.node}-${p.pos}`, "flow")); }
  const lost = (way) => way.coef === 0, missing = view(pane).paths.filter((p) => st.parts.some((q) => q.to === p.leaf && q.n === q.of)).flatMap((p) => p.paths.filter(lost));
  (!mine ? [] : S.way ? [S.way] : missing).forEach((way) => way.nodes.slice(1).forEach((to, i) => {
    const edge = view().edges.find((e) => e[0] === to && e[1] === way.nodes[i]);
    overlay(pane, edge.join("-"), lost(way) ? "way lost" : "way");
  }));
};

/* --- the panel --- */
const details = (chosen = S.sel) => {
  const st = step(), id = chosen ?? st.node, k = known(main()), out = [];
  if (id === null) {
    out.push(el("h2", {}, "Leaves"), ...view().nodes.filter((n) => n.op === null).map((n) => array(n.value, n.symbol)));
  } else {
    const n = view().nodes[id], got = k.grads.get(id), done = got && got.n === got.of;
    out.push(el("h2", {}, n.formula ? `${n.symbol} = ${n.formula}` : n.symbol));
    const complete = (leaf) => { const g = k.grads.get(leaf); return g && g.n === g.of; };
    [id, ...(chosen === null ? st.parts.map((p) => p.to) : [])].filter(complete).forEach((i) => {
      const { verdict } = view().notes[i] || {};
      if (!verdict) { return; }
      out.push(el("h3", { class: verdict.ok ? "right" : "wrong" }, `the gradient of ${view().nodes[i].symbol}: ${verdict.ok ? "✓ right" : "✗ wrong"}`));
      out.push(...verdict.say.map((text) => el("pre", {}, text)), el("div", { class: "equation" }, ...verdict.tables.map(([caption, a]) => array(a, caption))));
    });
    out.push(k.values.has(id) ? array(n.value, "value") : el("p", { class: "cap" }, "value: not computed yet"));
    if (chosen === null && st.pass === "backward") {
      out.push(array(n.grad, "incoming gradient g"));
      st.parts.forEach((p) => {
        const line = el("div", { class: "equation" }), sign = (text) => el("span", { class: "sign" }, text);
        if (p.local !== null) { line.append(array(n.grad, "g"), sign("·"), array(p.local, "local derivative"), sign("=")); }
        if (p.raw !== null) { line.append(array(p.raw, "product"), sign("→ Σ →")); }
        line.append(array(p.part, p.of > 1 ? `share ${p.n} of ${p.of}` : "gradient"));
        out.push(el("h3", {}, `to ${view().nodes[p.to].symbol}: ${p.rule}`), line);
        if (p.n > 1) { out.push(array(p.total, `sum of ${p.n} shares${p.n === p.of ? ": the gradient" : ", so far"}`)); }
      });
    } else if (done) { out.push(array(n.grad, "gradient"));
    } else if (got) { out.push(array(got.total, `gradient so far, ${got.n} of ${got.of} shares`));
    } else { out.push(el("p", { class: "cap" }, n.grad === null ? "gradient: none" : "gradient: not computed yet")); }
    view().paths.filter((p) => complete(p.leaf) && (p.leaf === id || st.parts.some((q) => q.to === p.leaf))).forEach((p) => {
      const name = view().nodes[p.leaf].symbol;
      out.push(el("h3", {}, `${p.paths.length} paths to ${name}, which add up to its gradient`));
      p.paths.forEach((way) => {
        const b = el("button", { type: "button", class: "path", "aria-pressed": S.way === way }, way.label + (way.coef === undefined ? "" : ` × ${way.coef === null ? "any: its term is 0" : way.coef.toFixed(2)}`));
        b.addEventListener("click", () => {
          const at = [...panel.querySelectorAll(".path")].indexOf(b);
          S.way = S.way === way ? null : way;
          show();
          panel.querySelectorAll(".path")[at].focus({ preventScroll: true });
        });
        out.push(b, array(way.part, way.nodes.map((i) => view().nodes[i].symbol).join(" → ")));
      });
      out.push(array(p.sum, "their sum"));
    });
    const note = view().notes[id] || {};
    if (S.ulp && note.ulp && k.values.has(id)) {
      const other = D.views[1 - main().view].name, line = (what, u) => el("p", {}, `${what}: ${view().name} ${ulp(u.own)}${u.other === undefined ? "" : `, ${other} ${ulp(u.other)}, apart ${ulp(u.apart)}`}`);
      out.push(el("h3", {}, "Largest error, in units in the last place"), line("value", note.ulp.value), note.ulp.grad && done ? line("gradient", note.ulp.grad) : "");
    }
  }
  panel.replaceChildren(...out);
};

/* --- stepping --- */
const match = (i, j, id) => {
  if (i === j || id === null || id === undefined) { return id; }
  const twin = (v) => D.twin[D.views[v].name] || {};
  if (i) { return match(0, j, twin(i)[id]); }
  return j === 1 ? twin(0)[id] : D.views[j].nodes.filter((n) => twin(j)[n.id] === id).map((n) => n.id).pop();
};
const stepIn = (j) => {
  const { view: i, step: s } = main(), steps = D.views[j].steps, st = step();
  if (s === view().steps.length - 1) { return steps.length - 1; }
  const id = match(i, j, st.node), to = steps.findIndex((t) => t.pass === st.pass && t.node === id);
  return to < 0 ? Math.max(0, steps.findIndex((t) => t.pass === st.pass)) : to;
};
const show = () => {
  const last = view().steps.length - 1, st = step();
  panes.forEach((pane) => { if (pane !== main()) { pane.step = stepIn(pane.view); } pane.stage.classList.toggle("main", pane === main()); paint(pane); follow(pane); });
  app.dataset.step = slider.value = main().step;
  slider.setAttribute("aria-valuetext", `step ${main().step} of ${last}: ${st.say}`);
  $("count").textContent = `${main().step} / ${last} ${st.pass}`;
  if ($("say").textContent !== st.say) { $("say").textContent = st.say; }
  list.querySelectorAll("[aria-current]").forEach((li) => li.removeAttribute("aria-current"));
  const li = list.children[main().step];
  li.setAttribute("aria-current", "step");
  if ($("all").open) { list.scrollTop = li.offsetTop - list.offsetTop - list.clientHeight / 2; }
  details();
};
const go = (to) => { Object.assign(S, { sel: null, way: null, was: null }); main().step = Math.max(0, Math.min(view().steps.length - 1, to)); show(); };
const first = (pass) => { const i = view().steps.findIndex((s) => s.pass === pass); return i < 0 ? view().steps.length : i; };
const enter = (j) => {
  const to = S.was && S.was.view === j ? S.was.step : stepIn(j), was = { view: main().view, step: main().step };
  main().view = j;
  refresh();
  go(to);
  S.was = was;
};
const refresh = () => {
  slider.max = view().steps.length - 1;
  list.replaceChildren(...view().steps.map((s) => el("li", {}, s.say)));
  if (!D.beside) { drawn.forEach((d, i) => { d.box.hidden = i !== main().view; }); }
  $("views").value = main().view;
  act("open").textContent = main().view ? "Close the fused node" : "Open the fused node";
  act("open").setAttribute("aria-expanded", main().view > 0);
  panes.forEach((pane) => zoom(pane, 0));
};
const toPane = (k) => { if (k !== S.pane) { S.pane = k; Object.assign(S, { sel: null, way: null }); refresh(); } };
const choose = (id) => { S.sel = id; show(); drawn[main().view].nodes.get(id)[0].focus({ preventScroll: true }); };

/* --- size and place: 0 fits what stays readable --- */
const zoom = (pane, factor) => {
  const { svg, size: [w, h] } = drawn[pane.view], { clientWidth: W, clientHeight: H } = pane.stage;
  const fit = Math.min((W - 12) / w, (H - 12) / h);
  if (!(fit > 0)) { return; }
  pane.scale = factor === 0 ? Math.min(1.35, Math.max(fit, 1)) : factor < 0 ? fit : Math.min(4, Math.max(0.05, pane.scale * factor));
  svg.style.width = `${w * pane.scale}px`; svg.style.height = `${h * pane.scale}px`;
};
const follow = (pane) => {
  const id = pane === main() && S.sel !== null ? S.sel : step(pane).node, e = (drawn[pane.view].nodes.get(id) || [])[0];
  if (!e) { return; }
  const a = e.getBoundingClientRect(), b = pane.stage.getBoundingClientRect(), dx = a.left + a.width / 2 - b.left - b.width / 2, dy = a.top + a.height / 2 - b.top - b.height / 2;
  if (Math.abs(dx) > b.width * 0.32 || Math.abs(dy) > b.height * 0.32) { pane.stage.scrollBy(dx, dy); }
};
const play = () => {
  if (S.timer) { clearInterval(S.timer); }
  S.timer = S.timer ? 0 : setInterval(() => { if (main().step < view().steps.length - 1) { go(main().step + 1); } else { play(); } }, 1200);
  act("play").textContent = S.timer ? "Pause" : "Play";
  act("play").setAttribute("aria-pressed", S.timer > 0);
};
const press = (name, key) => { S[key] = !S[key]; act(name).setAttribute("aria-pressed", S[key]); };
const acts = {
  next: () => go(main().step + 1), back: () => go(main().step - 1), first: () => go(0), last: () => go(view().steps.length - 1), play,
  forward: () => go(first("seed") - 1), backward: () => go(first("seed")),
  open: () => { if (D.beside) { toPane(1 - S.pane); show(); } else if (D.views.length > 1) { enter(main().view ? 0 : 1); } },
  ulp: () => { press("ulp", "ulp"); show(); }, keys: () => press("keys", "keys"), help: () => $("help").showModal(),
  in: () => panes.forEach((pane) => { zoom(pane, 1.25); follow(pane); }), out: () => panes.forEach((pane) => { zoom(pane, 0.8); follow(pane); }), fit: () => panes.forEach((pane) => zoom(pane, -1)),
};
const KEYS = [["n", "next", "next step"], ["p", "back", "previous step"], ["Home", "first", "first step"], ["End", "last", "last step"], ["f", "forward", "end of the forward pass"], ["b", "backward", "start of the backward pass"], [" ", "play", "play or pause"], ["o", "open", "open or close the fused node; change sides"], ["c", "ulp", "rounding errors"], ["+", "in", "larger"], ["-", "out", "smaller"], ["0", "fit", "whole graph"], ["?", "help", "this help"]];
const neighbour = (id, key) => {
  const into = (n) => view().edges.filter((e) => e[1] === n).map((e) => e[0]), from = (n) => view().edges.filter((e) => e[0] === n).map((e) => e[1]);
  if (key === "ArrowUp") { return into(id)[0]; }
  if (key === "ArrowDown") { return from(id)[0]; }
  const near = from(id).length ? into(from(id)[0]) : [], all = near.length > 1 ? near : view().nodes.map((n) => n.id);
  return all[(all.indexOf(id) + (key === "ArrowRight" ? 1 : all.length - 1)) % all.length];
};
const nodeOf = (e) => e.target.closest && e.target.closest("[data-node]");
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey || $("help").open) { return; }
  const node = nodeOf(e), id = node ? Number(node.dataset.node) : null;
  if (node && e.key.startsWith("Arrow")) { const to = neighbour(id, e.key); if (to !== undefined) { choose(to); } e.preventDefault(); return; }
  if (node && e.key === "Enter") { const to = view().steps.findIndex((s) => s.pass === "forward" && s.node === id); go(Math.max(0, to)); e.preventDefault(); return; }
  if (e.key === "Escape") { Object.assign(S, { sel: null, way: null }); show(); return; }
  if (!S.keys || (e.target.matches("input,button,select,summary") && (e.key === " " || e.key === "Home" || e.key === "End"))) { return; }
  const found = KEYS.find(([key]) => key === (e.key === "=" ? "+" : e.key));
  if (found) { e.preventDefault(); acts[found[1]](); }
});
document.querySelectorAll("[data-do]").forEach((b) => b.addEventListener("click", () => acts[b.dataset.do]()));
slider.addEventListener("input", () => go(Number(slider.value)));
list.addEventListener("click", (e) => { const i = [...list.children].indexOf(e.target.closest("li")); if (i >= 0) { go(i); } });
$("views").addEventListener("change", (e) => enter(Number(e.target.value)));
panes.forEach((pane, k) => {
  pane.stage.addEventListener("click", (e) => { const node = nodeOf(e); toPane(k); if (node) { choose(Number(node.dataset.node)); } else { show(); } });
  pane.stage.addEventListener("pointerover", (e) => { const node = nodeOf(e); if (node && S.sel === null && pane === main()) { details(Number(node.dataset.node)); } });
  pane.stage.addEventListener("pointerout", (e) => { if (nodeOf(e) && S.sel === null) { details(); } });
  pane.stage.addEventListener("wheel", (e) => { if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(pane, e.deltaY > 0 ? 1 / 1.15 : 1.15); } }, { passive: false });
  new ResizeObserver(() => { if (!pane.scale) { zoom(pane, 0); paint(pane); follow(pane); } }).observe(pane.stage);
});
addEventListener("beforeprint", () => { $("all").open = true; });

$("help").querySelector("dl").append(...KEYS.flatMap(([key, , text]) => [el("dt", {}, key === " " ? "space" : key), el("dd", {}, text)]), el("dt", {}, "arrows"), el("dd", {}, "walk the graph"), el("dt", {}, "Enter"), el("dd", {}, "go to the node's step"), el("dt", {}, "Esc"), el("dd", {}, "let go"));
app.classList.toggle("beside", D.beside);
act("open").hidden = D.beside || D.views.length < 2;
act("ulp").hidden = !D.views.some((v) => Object.values(v.notes).some((n) => n.ulp));
$("views").hidden = D.beside || D.views.length < 3;
$("views").append(...D.views.map((v, i) => el("option", { value: i }, v.name)));
$("all").open = false;
refresh();
const wrong = view().steps.findIndex((s) => s.parts.some((p) => p.n === p.of && view().notes[p.to] && view().notes[p.to].verdict && !view().notes[p.to].verdict.ok));
go(Math.max(0, wrong));
})();
