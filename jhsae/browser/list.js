// The list on the left: only the rows in view exist, so that it is fast with many thousands of latents.

const ROW = 44;
const PLAIN_SORTS = {
  frequency: ["frequency", (a, b) => b.latent.fired - a.latent.fired, hit => percent(hit.latent.fired / DATA.rows)],
  high: ["largest activation", (a, b) => b.latent.high - a.latent.high, hit => short(hit.latent.high)],
  index: ["number", (a, b) => a.latent.place - b.latent.place, hit => percent(hit.latent.fired / DATA.rows)],
};
const SEARCH_SORTS = {
  mean: ["mean activation on the word", (a, b) => b.mean - a.mean, hit => short(hit.mean)],
  share: ["share of activation on the word", (a, b) => b.share - a.share, hit => percent(hit.share)],
};
const list = document.getElementById("list"), rows = document.getElementById("rows");
const filter = document.getElementById("filter"), sort = document.getElementById("sort");
const kind = document.getElementById("kind"), status = document.getElementById("status");
const view = {hits: [], result: null, chosen: null, sorts: PLAIN_SORTS};

function offerSorts(sorts, first) {
  if (view.sorts === sorts && sort.options.length) return;
  view.sorts = sorts;
  sort.replaceChildren(...Object.entries(sorts).map(([key, [text]]) => h("option", {value: key, selected: key === first}, text)));
}

// Fills the list anew, from the filter and the two choices under it.
function refreshList() {
  view.result = search(filter.value);
  const searching = view.result !== null && view.result.onTokens > 0;
  offerSorts(searching ? {...SEARCH_SORTS, ...PLAIN_SORTS} : PLAIN_SORTS, searching ? "mean" : "frequency");
  if (kind) kind.disabled = view.result !== null;
  const all = !kind || kind.value === "all";
  const hits = view.result ? [...view.result.hits] : LATENTS.filter(one => all || !one.up).map(latent => ({latent}));
  const [, order] = view.sorts[sort.value];
  const first = hit => (view.result?.named.has(hit.latent) ? 0 : 1);
  view.hits = hits.sort((a, b) => first(a) - first(b) || order(a, b));
  status.replaceChildren(...statusLine().flat(Infinity));
  list.scrollTop = 0;
  drawRows();
}

function statusLine() {
  const result = view.result;
  if (!result) return [countKinds(view.hits), " that fired. ", h("kbd", null, "/"), " finds, arrows move."];
  const line = [countKinds(view.hits)];
  for (const {typed, exact, words} of result.words) {
    if (exact) continue;
    if (words.length) line.push(`; no token “${typed}”, so tokens that begin so`);
    else line.push(`; no token “${typed}”`, suggestions(typed));
  }
  return line;
}

function countKinds(hits) {
  const atoms = hits.filter(hit => hit.latent.up).length, others = hits.length - atoms;
  if (!TREE) return plural(others, "latent");
  return [others && plural(others, "expert"), atoms && plural(atoms, "atom")].filter(Boolean).join(", ") || "nothing";
}

function drawRows() {
  rows.style.height = `${view.hits.length * ROW}px`;
  const start = Math.max(0, Math.floor(list.scrollTop / ROW) - 8);
  const stop = Math.min(view.hits.length, start + Math.ceil((list.clientHeight || 800) / ROW) + 16);
  const drawn = [];
  const at = place();
  for (let i = start; i < stop; i++) drawn.push(option(view.hits[i], i, i === at));
  rows.replaceChildren(...drawn);
  if (at >= start && at < stop) list.setAttribute("aria-activedescendant", `option-${at}`);
  else list.removeAttribute("aria-activedescendant");
}

function option(hit, i, chosen) {
  const {latent} = hit, show = view.sorts[sort.value][2];
  const row = h("div", {
    class: "option", role: "option", id: `option-${i}`, style: `top:${i * ROW}px`,
    "aria-selected": String(chosen), "aria-setsize": view.hits.length, "aria-posinset": i + 1,
  },
  h("b", null, latent.id, latent.name && h("i", null, " " + latent.name)), h("span", {class: "number"}, show(hit)),
  h("span", {class: "heads"}, heads(latent)));
  row.addEventListener("click", () => open(latent, "pushState"));
  return row;
}

// The tokens of a latent's strongest contexts, in one line.
function heads(latent, most = 5) {
  const words = latent.first.map(([sequence, position]) => DATA.pieces[DATA.sequences[sequence][position]].trim() || "␣");
  return [...new Set(words)].slice(0, most).join(" · ");
}

// The row of the shown latent, or that of the nearest one above it in the tree; -1 where none is in the list.
function place() {
  for (let latent = view.chosen; latent; latent = latent.up) {
    const at = view.hits.findIndex(hit => hit.latent === latent);
    if (at >= 0) return at;
  }
  return -1;
}

// Marks a latent as the one shown; brings its row into view where it has one.
function choose(latent) {
  view.chosen = latent;
  const at = place();
  if (at >= 0 && (at * ROW < list.scrollTop || (at + 1) * ROW > list.scrollTop + list.clientHeight))
    list.scrollTop = at * ROW - list.clientHeight / 2;
  drawRows();
}

// Shows a latent and leaves the focus where it is.
function open(latent, entry) {
  history[entry](null, "", "#" + latent.id);
  route(false);
}

// Opens the latent `step` rows from the shown one, without an entry in the browser's history.
function move(step) {
  if (!view.hits.length) return;
  const at = place();
  open(view.hits[Math.min(Math.max(at < 0 ? 0 : at + step, 0), view.hits.length - 1)].latent, "replaceState");
}

list.addEventListener("scroll", drawRows, {passive: true});
new ResizeObserver(drawRows).observe(list);
list.addEventListener("keydown", event => {
  const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
  const step = {ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity}[event.key];
  if (event.key === "Enter") document.querySelector("#card h2")?.focus();
  if (step === undefined) return;
  event.preventDefault();
  move(step);
});
