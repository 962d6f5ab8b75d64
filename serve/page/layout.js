// Where what can be pressed lies: on the screen, on a keyboard, on a gamepad. All from a model's controls, {keys, one, axes}.

/** How far a key that is held, or a stick that leans all the way, turns an axis in each video frame. */
export const STEP = 0.1;

/** Two crosses. Of `names` the first that a model has lies there; an axis comes before them. */
const PLACES = [
  { pad: "walk", side: "up", names: ["forward", "up", "jump"], codes: ["KeyW"], stick: [1, -1], button: 12 },
  { pad: "walk", side: "left", names: ["left", "side_left"], codes: ["KeyA"], stick: [0, -1], button: 14 },
  { pad: "walk", side: "down", names: ["back", "backward", "down", "slide"], codes: ["KeyS"], stick: [1, 1], button: 13 },
  { pad: "walk", side: "right", names: ["right", "side_right"], codes: ["KeyD"], stick: [0, 1], button: 15 },
  { pad: "look", side: "up", names: ["look_up"], codes: [], stick: [3, -1], turns: ["pitch", STEP] },
  { pad: "look", side: "left", names: ["look_left", "turn_left"], codes: ["KeyQ"], stick: [2, -1], turns: ["yaw", -STEP] },
  { pad: "look", side: "down", names: ["look_down"], codes: [], stick: [3, 1], turns: ["pitch", -STEP] },
  { pad: "look", side: "right", names: ["look_right", "turn_right"], codes: ["KeyE"], stick: [2, 1], turns: ["yaw", STEP] },
];
const ARROWS = { up: "ArrowUp", left: "ArrowLeft", down: "ArrowDown", right: "ArrowRight" };
/** Beside their numbers, on keyboards. */
const MORE = { jump: ["Space"], slide: ["KeyC"] };
const NUMBERED = 9;

/** A name as people read it. */
export const said = (name) => name.replaceAll("_", " ");

/** A key's code as `aria-keyshortcuts` has it: `KeyW` is `W`. */
export const shortcut = (code) => code.replace(/^(Key|Digit)/, "");

/**
 * What can be pressed, each once: {name, pad, side, codes, stick: [axis, sign], button, axis, step, mouse}. `pad` and
 * `side` are null of what lies on no cross. `axis`: which of the model's axes it turns, by `step` in each frame; null: it
 * is the key `name`. `mouse`: a mouse that moves that way does it, too.
 */
export function layout({ keys, one, axes }) {
  const free = one ? keys.slice(1) : [...keys]; // the first stands for no key
  const crossed = PLACES.flatMap(({ turns: [turned, step] = [], names, ...place }) => {
    const axis = axes.indexOf(turned);
    if (axis >= 0) return [{ ...place, name: `${place.pad} ${place.side}`, axis, step, mouse: true }];
    const name = names.map((one) => free.find((own) => own.toLowerCase() === one)).find(Boolean);
    if (!name) return [];
    free.splice(free.indexOf(name), 1);
    return [{ ...place, name, axis: null, mouse: name.toLowerCase().startsWith("look_") }];
  });
  // An arrow key looks where one can look that way, and walks elsewhere.
  for (const [side, code] of Object.entries(ARROWS)) {
    const owner = crossed.findLast((control) => control.side === side);
    if (owner) owner.codes = [code, ...owner.codes];
  }
  const others = free.map((name, index) => ({
    name, pad: null, side: null, axis: null, mouse: false, stick: null, button: index < 4 ? index : null,
    codes: [...(index < NUMBERED ? [`Digit${index + 1}`] : []), ...(MORE[name.toLowerCase()] ?? [])],
  }));
  return [...crossed, ...others];
}
