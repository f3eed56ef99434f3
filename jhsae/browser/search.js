// From what is typed to latents. DATA.search maps a word (tokens that differ in case or in the space before them are one
// word) to [occurrences, latent, mean, share, firings, next latent, ...].

// As `word` of token_text.py: Unicode's case folding, which JavaScript has only in part, and composed letters.
const foldLetter = letter => letter === "ı" ? letter : letter === "ẞ" ? "ss"
  : /[\u13a0-\u13ff\uab70-\uabbf]/.test(letter) ? letter.toUpperCase()
  : [...letter.toUpperCase()].map(one => one.toLowerCase()).join("");
const fold = text => [...text.trim().normalize("NFC")].map(foldLetter).join("").normalize("NFC");

// word -> its tokens on the page.
const tokensOf = new Map();

function prepareSearch() {
  DATA.words.forEach((word, piece) => tokensOf.set(word, [...(tokensOf.get(word) ?? []), piece]));
}

// The indexed words that one typed word stands for: itself, or else those that begin so.
function wordsFor(typed) {
  if (Object.hasOwn(DATA.search, typed)) return {typed, exact: true, words: [typed]};
  const begin = Object.keys(DATA.search).filter(one => one.startsWith(typed));
  return {typed, exact: false, words: begin.sort((a, b) => a.length - b.length).slice(0, 12)};
}

// latent -> {mean, share, fired} over several words, which count as one.
function firingsOn(words) {
  const found = new Map();
  const occurrences = words.reduce((sum, word) => sum + DATA.search[word][0], 0);
  for (const word of words) {
    const row = DATA.search[word];
    for (let i = 1; i < row.length; i += 4) {
      const hit = found.get(row[i]) ?? {mean: 0, share: 0, fired: 0};
      hit.mean += row[i + 1] * row[0] / occurrences;
      hit.share += row[i + 2];
      hit.fired += row[i + 3];
      found.set(row[i], hit);
    }
  }
  return {found, occurrences};
}

// Everything that a query says: latents by name or concept, and those that fire on every one of its words.
function search(query) {
  const text = fold(query);
  if (!text) return null;
  const named = LATENTS.filter(latent => latent.id === text || latent.id.slice(1) === text
    || (latent.name && fold(latent.name).includes(text)));
  const words = text.split(/\s+/).map(wordsFor);
  const parts = words.map(one => firingsOn(one.words));
  let hits = [];
  if (parts.every(part => part.found.size)) {
    const everywhere = [...parts[0].found.keys()].filter(latent => parts.every(part => part.found.has(latent)));
    hits = everywhere.map(latent => ({
      latent: LATENTS[latent],
      mean: parts.reduce((sum, part) => sum + part.found.get(latent).mean, 0) / parts.length,
      share: parts.reduce((sum, part) => sum + part.found.get(latent).share, 0),
      fired: parts.reduce((sum, part) => sum + part.found.get(latent).fired, 0),
    }));
  }
  const there = new Set(hits.map(hit => hit.latent));
  const others = named.filter(latent => !there.has(latent)).map(latent => ({latent, mean: 0, share: 0, fired: 0}));
  const occurrences = parts.reduce((sum, part) => sum + part.occurrences, 0);
  return {text, words, hits: [...others, ...hits], named: new Set(named), onTokens: hits.length, occurrences};
}

// For a word that is no token: links to the longest tokens that it begins with, which is how a tokeniser may cut it.
function suggestions(typed) {
  const found = [];
  for (let stop = typed.length - 1; stop > 1 && found.length < 3; stop--)
    if (Object.hasOwn(DATA.search, typed.slice(0, stop))) found.push(typed.slice(0, stop));
  return found.map((one, i) => [i ? ", " : ", try ", h("a", {href: "#q=" + encodeURIComponent(one)}, one)]);
}
