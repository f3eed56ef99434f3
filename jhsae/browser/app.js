// Unpacks the data, reads the address (#e12, #e12/a3, #e12/a3/a1, #f7, #q=water) and answers the keyboard.

let DATA, LATENTS, BY_ID, TREE;

async function unpack() {
  const element = document.getElementById("data");
  if (element.type === "application/json") return JSON.parse(element.textContent);
  const bytes = Uint8Array.from(atob(element.textContent), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

function connect(data) {
  DATA = data;
  LATENTS = data.latents;
  BY_ID = new Map(LATENTS.map(latent => [latent.id, latent]));
  TREE = LATENTS[0].id.startsWith("e");
  LATENTS.forEach((latent, place) => {
    latent.place = place;
    latent.up = BY_ID.get(latent.id.slice(0, Math.max(latent.id.lastIndexOf("/"), 0)));
    latent.atoms = [];
  });
  for (const latent of LATENTS) latent.up?.atoms.push(latent);
}

// Shows what the address names; `focus` moves the reader to its heading.
function route(focus = true) {
  const address = location.hash.slice(1);
  const query = address.startsWith("q=") ? new URLSearchParams(address).get("q") : null;
  const latent = BY_ID.get(address) ?? null;
  if (query !== null && filter.value !== query) {
    filter.value = query;
    refreshList();
  }
  const content = latent ? card(latent) : query !== null && view.result ? found(view.result)
    : [address && query === null && h("p", {class: "note", role: "alert"}, `There is no latent “${address}” on this page.`), overview()];
  const article = document.getElementById("card");
  article.replaceChildren(...content.flat(Infinity).filter(Boolean));
  document.title = latent ? `${latent.id} · ${TITLE}` : query ? `${query} · ${TITLE}` : TITLE;
  document.getElementById("main").scrollTop = 0;
  choose(latent);
  if (focus) article.querySelector("h2").focus({preventScroll: true});
}

const TITLE = document.title;
filter.addEventListener("input", () => {
  refreshList();
  if (location.hash.startsWith("#q=")) history.replaceState(null, "", filter.value ? "#q=" + encodeURIComponent(filter.value) : "#");
  if (!view.chosen) route(false);
});
filter.addEventListener("keydown", event => {
  if (event.key === "Enter" && filter.value.trim()) location.hash = "q=" + encodeURIComponent(filter.value);
  if (event.key === "ArrowDown") { event.preventDefault(); list.focus(); move(0); }
});
for (const control of [sort, kind]) control?.addEventListener("change", () => {
  refreshList();
  if (!view.chosen) route(false);
});
addEventListener("hashchange", () => route());
addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (event.key === "/") { event.preventDefault(); filter.focus(); filter.select(); }
  if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
  if (event.key === "u" && view.chosen?.up) location.hash = view.chosen.up.id;
});

unpack().then(data => {
  connect(data);
  prepareSearch();
  refreshList();
  route(false);
});
