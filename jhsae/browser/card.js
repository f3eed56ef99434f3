// What the main pane shows: one latent, the result of a search, or an overview of all latents.

const link = latent => h("a", {href: "#" + latent.id}, latent.id);
const section = (title, note, ...body) => h("section", null, h("h3", null, title, note && h("small", null, note)), ...body);
const tile = (term, value, note) => h("div", null, h("dt", null, term), h("dd", null, value, note && h("small", null, " " + note)));
let wrapped = false;

function card(latent) {
  const up = latent.up;
  return [
    crumbs(latent),
    h("h2", {tabindex: -1}, title(latent), latent.name && h("span", {class: "concept"}, " " + latent.name)),
    h("p", {class: "heading-words"}, "strongest on ", heads(latent, 8)),
    up && siblings(latent),
    tiles(latent),
    h("div", {class: "pair"},
      section("Activation where it fires", null, activationHistogram(latent)),
      latent.tokens.length > 0 && section("Tokens it fires on", "by share of its activation", tokenTable(latent))),
    latent.slots > 0 && section(latent.atoms.some(atom => atom.slots > 0) ? "The tree below" : "Atoms", atomNote(latent), atomTable(latent)),
    contexts(latent),
    latent.top.length > 0 && h("div", {class: "pair"},
      section("Raises these tokens most", "logit per unit", logitTable(latent.top)),
      section("Lowers these tokens most", "logit per unit", logitTable(latent.bottom))),
    latent.near.length > 0 && section("Nearest decoder directions", "cosine, among all latents that fired", nearTable(latent)),
  ];
}

function title(latent) {
  const [top, ...atoms] = latent.id.match(/\d+/g);
  return [...atoms.reverse().map(atom => `Atom ${atom}`), `${TREE ? "Expert" : "Latent"} ${top}`]
    .map((part, i) => i ? part.toLowerCase() : part).join(" of ");
}

function crumbs(latent) {
  const steps = [];
  for (let one = latent.up; one; one = one.up) steps.unshift(h("a", {href: "#" + one.id}, `${one.up ? "atom" : "expert"} ${one.id}`), "›");
  return h("nav", {"aria-label": "Breadcrumb"}, h("a", {href: "#"}, "All latents"), "›", steps, h("span", {"aria-current": "page"}, latent.id));
}

const last = latent => latent.id.split("/").pop();

// The atoms of one expert, side by side, to walk between them.
function siblings(latent) {
  return h("nav", {class: "chips", "aria-label": `Atoms of ${latent.up.id}`}, latent.up.atoms.map(one =>
    h("a", {href: "#" + one.id, "aria-current": one === latent && "true", title: heads(one)}, last(one))));
}

function tiles(latent) {
  const size = latent.mean * latent.norm;
  return h("dl", {class: "tiles"},
    tile(`of the ${DATA.unit}s`, percent(latent.fired / DATA.rows), `${whole(latent.fired)} of ${whole(DATA.rows)}`),
    latent.up && tile(`of the firings of ${latent.up.id}`, percent(latent.fired / latent.up.fired)),
    tile("mean activation", short(latent.mean)),
    tile("largest activation", short(latent.high)),
    tile("of a typical norm, at the mean", percent(size / DATA.norm), `${short(size)} of ${short(DATA.norm)}`));
}

function tokenTable(latent) {
  return h("table", null, head(["token"], ["share", "n"], ["mean on it", "n"], ["fires on", "n"]), h("tbody", null,
    latent.tokens.map(([piece, share, mean, fired]) => h("tr", null, cell(token(piece)), number(percent(share)),
      number(short(mean)), number(`${whole(fired)} of ${whole(DATA.occurrences[piece])}`)))));
}

function atomNote(latent) {
  const notes = [`${percent(latent.alone / latent.fired)} of its firings take no atom`];
  if (latent.dead) notes.push(`${plural(latent.dead, "atom")} never fired`);
  const hidden = latent.slots - latent.dead - latent.atoms.length;
  if (hidden > 0) notes.push(`${hidden} rarer not shown`);
  return notes.join(", ");
}

// All that is below a latent, each atom's own under it and further to the right.
function atomTable(latent) {
  const largest = Math.max(...latent.atoms.map(atom => atom.fired), 1);
  const below = (one, depth) => [...one.atoms].sort((a, b) => b.fired - a.fired).flatMap(atom => [h("tr", null,
    h("td", {class: depth > 0 && "below", style: `--depth:${depth}`}, h("a", {href: "#" + atom.id}, last(atom))),
    number(percent(atom.fired / one.fired), `${whole(atom.fired)} of ${whole(one.fired)}`),
    h("td", {class: "bar"}, h("span", {style: `width:${100 * Math.min(atom.fired / largest, 1)}%`})),
    number(percent(atom.fired / DATA.rows)), number(short(atom.high)),
    h("td", {class: "fill soft"}, heads(atom, 8))), ...below(atom, depth + 1)]);
  return h("table", null,
    head(["atom"], [latent.atoms.some(atom => atom.slots > 0) ? "of its parent's firings" : "of its firings", "n"], [""],
      [`of all ${DATA.unit}s`, "n"], ["largest", "n"], ["strongest on"]),
    h("tbody", null, below(latent, 0)));
}

function contexts(latent) {
  const box = h("input", {type: "checkbox", id: "wrap", checked: wrapped});
  const both = h("div", {class: wrapped && "wrapped"},
    section("Strongest contexts", "each passage once", contextTable(latent, latent.first)),
    latent.below.length > 0 && section("Weaker contexts", "at evenly spaced ranks, down to the weakest", contextTable(latent, latent.below)));
  box.addEventListener("change", () => { wrapped = box.checked; both.classList.toggle("wrapped", wrapped); });
  return [h("label", {class: "option-line"}, box, " whole passages"), both];
}

function contextTable(latent, found) {
  const withAtom = latent.slots > 0;
  const atom = n => n === null ? h("span", {class: "soft", title: "no atom"}, "–")
    : h("a", {href: `#${latent.id}/a${n}`, title: "the strongest atom here"}, "a" + n);
  return h("table", {class: "contexts"}, h("tbody", null, found.map(one => h("tr", null,
    h("td", {class: "value"}, short(one[2])),
    h("td", {class: "line"}, passage(latent, one)),
    withAtom && h("td", {class: "atom"}, atom(one[4]))))));
}

// A passage with the firing token in the middle; every token is as dark as the latent is active on it.
function passage(latent, [sequence, position, , around]) {
  const tokens = DATA.sequences[sequence], [before, after] = DATA.window;
  const silent = new Set(DATA.unmeasured[sequence]), values = new Map();
  for (let i = 0; i < around.length; i += 2) values.set(position + around[i], around[i + 1]);
  const one = at => {
    const text = DATA.pieces[tokens[at]], value = values.get(at);
    if (value !== undefined) {
      const part = Math.min(Math.max(value / latent.high, 0), 1);
      const hint = `${short(value)}, ${percent(part)} of the largest`;
      return h("mark", {class: at === position && "peak", style: `--i:${part.toFixed(3)}`, title: hint}, text);
    }
    return silent.has(at) ? h("span", {class: "unmeasured", title: "not measured"}, text) : text;
  };
  const range = (start, stop) => Array.from({length: Math.max(stop - start, 0)}, (_, i) => one(start + i));
  return h("div", {class: "kwic"},
    h("div", {class: "left"}, h("span", null, range(Math.max(position - before, 0), position))),
    h("div", {class: "right"}, range(position, Math.min(position + after + 1, tokens.length))));
}

function logitTable(pairs) {
  const largest = Math.max(...pairs.map(([, value]) => Math.abs(value)), 1e-30);
  return h("table", null, h("tbody", null, pairs.map(([piece, value]) => h("tr", null, h("td", {class: "fill"}, token(piece)),
    h("td", {class: "bar"}, h("span", {style: `width:${100 * Math.abs(value) / largest}%`})), number(short(value))))));
}

function nearTable(latent) {
  return h("table", null, h("tbody", null, latent.near.map(([id, cosine]) => {
    const other = BY_ID.get(id);
    return h("tr", null, cell(other ? link(other) : id), number(cosine.toFixed(2)),
      h("td", {class: "fill soft"}, other ? heads(other, 8) : "not on this page"));
  })));
}

// The latents that fire on a word, as a table.
function found(result) {
  const tokens = [...new Set(result.words.flatMap(one => one.words.flatMap(word => tokensOf.get(word))))];
  return [
    h("nav", {"aria-label": "Breadcrumb"}, h("a", {href: "#"}, "All latents"), "›", h("span", {"aria-current": "page"}, "search")),
    h("h2", {tabindex: -1}, `Latents that fire on “${result.text}”`),
    h("p", {class: "note"}, tokens.length ? ["Tokens: ", tokens.map(one => [token(one), ` ${whole(DATA.occurrences[one])}× `])]
      : ["No token of the measured text reads or begins so", suggestions(result.text), "."]),
    result.words.length > 1 && h("p", {class: "note"}, "Several words: latents that fire on every one of them, wherever that is."),
    view.hits.length > 0 && h("table", null,
      head(["latent"], ["mean on it", "n"], ["share on it", "n"], ["fires on", "n"], ["largest", "n"], ["strongest on"]),
      h("tbody", null, view.hits.slice(0, 60).map(hit => h("tr", null, cell(link(hit.latent)), number(short(hit.mean)),
        number(percent(hit.share)), number(`${whole(hit.fired)} of ${whole(result.occurrences)}`), number(short(hit.latent.high)),
        h("td", {class: "fill soft"}, hit.latent.name ? `${hit.latent.name}: ` : "", heads(hit.latent, 8)))))),
    view.hits.length > 60 && h("p", {class: "note"}, `${whole(view.hits.length - 60)} more are in the list.`),
  ];
}

function overview() {
  const keys = [["/", "find"], ["↑ ↓", "the next latent, in the list"], ["j k", "the next latent, from anywhere"],
    TREE && ["u", "from an atom to its expert"]].filter(Boolean);
  return [
    h("h2", {tabindex: -1}, "All latents"),
    h("p", {class: "note"}, `${countKinds(LATENTS.map(latent => ({latent})))} on this page. Choose one on the left, or type a word `
      + "to see what fires on it; every latent has an address of its own, such as ", link(LATENTS[0]), "."),
    h("p", {class: "note"}, keys.map(([key, what]) => [h("kbd", null, key), ` ${what}   `])),
    h("div", {class: "pair"}, DATA.density.map(one => section(`How often ${one.kind} fire`,
      `${whole(one.all - one.dead)} of ${whole(one.all)} fired`, densityHistogram(one)))),
  ];
}
