// Turns each figure.cf-progressions, a stack of image strips, into a player: a list chooses the
// strip, a range input the image. Tile 0 of a strip is the query; the others are its explanations.
"use strict";

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A window onto one tile of a strip; `show` moves the strip and says what the tile holds. */
function makeWindow(tiles) {
  const image = element("img");
  image.style.width = `${100 * tiles}%`;
  const box = element("div", { className: "cf-window" }, image);
  const show = (strip, tile, text) => {
    box.style.aspectRatio = `${strip.width / tiles} / ${strip.height}`;
    if (image.src !== strip.src) image.src = strip.src;
    image.style.transform = `translateX(${(-100 * tile) / tiles}%)`;
    image.alt = text;
  };
  return { box, show };
}

function makePlayer(figure, number) {
  const { item, label } = figure.dataset;
  const strips = [...figure.querySelectorAll("img")].map((img) => ({
    src: img.src,
    width: Number(img.getAttribute("width")),
    height: Number(img.getAttribute("height")),
    values: img.dataset.values.split(" "),
  }));
  const tiles = strips[0].values.length;
  const last = tiles - 2; // the highest bin
  const query = makeWindow(tiles);
  const explanation = makeWindow(tiles);
  const queryText = element("span");
  const text = element("output", { id: `cf-output-${number}` });
  const range = element("input", {
    type: "range", min: 0, max: last, step: 1, id: `cf-range-${number}`,
    value: strips[0].values[0] < 0.5 ? last : 0, // the end that is far from the query
  });
  const choice = element(
    "select", { id: `cf-choice-${number}` },
    ...strips.map((_, i) => element("option", { value: i, textContent: `${item} ${i + 1}` })),
  );
  const play = element("button", { type: "button", textContent: "Play" });

  function draw() {
    const strip = strips[choice.value];
    const bin = Number(range.value);
    const name = `${item} ${Number(choice.value) + 1}`;
    const asked = `${(bin / (last + 1)).toFixed(1)} to ${((bin + 1) / (last + 1)).toFixed(1)}`;
    query.show(strip, 0, `Query, ${name}: probability of ${label} ${strip.values[0]}`);
    queryText.textContent = `query: ${strip.values[0]}`;
    explanation.show(
      strip, bin + 1,
      `Explanation of ${name}, ${asked} asked for: probability of ${label} ${strip.values[bin + 1]}`,
    );
    text.textContent = `asked for ${asked}, answer: ${strip.values[bin + 1]}`;
    range.setAttribute("aria-valuetext", text.textContent);
  }

  let timer = null;
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }
  play.addEventListener("click", () => {
    if (timer !== null) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => {
      range.value = (Number(range.value) + 1) % (last + 1);
      draw();
    }, 500);
  });
  range.addEventListener("input", () => { stop(); draw(); });
  choice.addEventListener("change", draw);

  const panel = (window_, below) => element("div", { className: "cf-panel" }, window_.box, below);
  const caption = figure.querySelector("figcaption");
  caption.textContent =
    `Left the query, right its explanation. The numbers are the classifier's probability of ${label}.`;
  figure.replaceChildren(
    element("div", { className: "cf-panels" }, panel(query, queryText), panel(explanation, text)),
    element(
      "div", { className: "cf-controls" },
      element("label", { htmlFor: choice.id, textContent: "Query" }), choice,
      element("label", { htmlFor: range.id, textContent: `Probability of ${label} asked for` }),
      range, play,
    ),
    caption,
  );
  draw();
}

document.querySelectorAll("figure.cf-progressions").forEach(makePlayer);
