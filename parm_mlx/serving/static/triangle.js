// A triangle for three weights: each corner is one objective alone, and a point mixes them by its nearness.
import { short } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const CORNERS = [[100, 14], [16, 160], [184, 160]];
const KEYS = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6] };

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const point = (weights) => [0, 1].map((axis) => weights.reduce((sum, weight, i) => sum + weight * CORNERS[i][axis], 0));

/** The weights at a point; outside the triangle, at its edge. */
function weightsAt([x, y]) {
  const [[x0, y0], [x1, y1], [x2, y2]] = CORNERS;
  const area = (y1 - y2) * (x0 - x2) + (x2 - x1) * (y0 - y2);
  const first = ((y1 - y2) * (x - x2) + (x2 - x1) * (y - y2)) / area;
  const second = ((y2 - y0) * (x - x2) + (x0 - x2) * (y - y2)) / area;
  const inside = [first, second, 1 - first - second].map((weight) => Math.max(0, weight));
  const sum = inside.reduce((total, weight) => total + weight);
  const [one, two] = inside.map((weight) => Math.round((100 * weight) / sum) / 100);
  return [one, Math.min(two, 1 - one), Math.max(0, 1 - one - two)];
}

function middleOfOppositeSide(corner) {
  const [one, other] = CORNERS.filter((_, i) => i !== corner);
  return [(one[0] + other[0]) / 2, (one[1] + other[1]) / 2];
}

export function triangle(objectives, weights, choose) {
  const points = CORNERS.map((corner) => corner.join()).join(" ");
  const gradients = CORNERS.map(([x1, y1], i) => {
    const [x2, y2] = middleOfOppositeSide(i);
    return draw("linearGradient", { id: `corner-${i}`, gradientUnits: "userSpaceOnUse", x1, y1, x2, y2 },
      draw("stop", { class: `stop-${i}` }), draw("stop", { class: `stop-${i}`, offset: 1, "stop-opacity": 0 }));
  });
  const fills = CORNERS.map((_, i) => draw("polygon", { points, fill: `url(#corner-${i})` }));
  const knob = draw("circle", { r: 11, class: "knob" });
  const picture = draw("svg", { id: "triangle", viewBox: "0 0 200 174", tabindex: 0, role: "application",
    "aria-roledescription": "triangle" }, ...gradients, ...fills, knob);

  const follow = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    choose(weightsAt([at.x, at.y]));
  };
  picture.addEventListener("pointerdown", (event) => { picture.setPointerCapture(event.pointerId); follow(event); });
  picture.addEventListener("pointermove", (event) => { if (picture.hasPointerCapture(event.pointerId)) follow(event); });
  picture.addEventListener("keydown", (event) => {
    const step = KEYS[event.key];
    if (!step) return;
    event.preventDefault();
    const [x, y] = point(weights());
    choose(weightsAt([x + step[0], y + step[1]]));
  });
  return {
    element: picture,
    show(now) {
      const [x, y] = point(now);
      knob.setAttribute("cx", x);
      knob.setAttribute("cy", y);
      const named = objectives.map((name, i) => `${name} ${short(now[i])}`).join(", ");
      picture.setAttribute("aria-label", `Preference: ${named}. The arrow keys move it.`);
    },
  };
}
