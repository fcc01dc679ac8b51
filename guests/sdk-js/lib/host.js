// What the host offers, by interface. The component's entry sets it (lib/component.js), tests set their own (testing.js); everything
// else asks here, so that handlers run in plain node as well.

let interfaces = {};
let calls = 0;
let wide = false;

/** Uses these interfaces from now on; returns those used before. */
export function setHost(given) {
  const before = interfaces;
  interfaces = given;
  calls++;
  return before;
}

/** The functions of one interface. */
export function hostOf(name) {
  const found = interfaces[name];
  if (found === undefined) {
    throw new Error(
      `the component has no import \`${name}\`: add "${name}" to \`imports\` in millrace.toml` +
        ` (in a test, call the handler through the Tester of testing.js)`,
    );
  }
  return found;
}

/** Whether an interface can be used. */
export function hasHost(name) {
  return interfaces[name] !== undefined;
}

/** A call begins: what was read from the host before may have changed. `sample` is a number of 64 bits, as the host passes them. */
export function beginCall(sample) {
  calls++;
  wide = typeof sample === "bigint";
}

/** The number of the current call. */
export function currentCall() {
  return calls;
}

/** A number of 64 bits as the toolchain wants it: QuickJS takes numbers, StarlingMonkey takes bigints. */
export function toWide(number) {
  return wide ? BigInt(number) : Number(number);
}

/** The case and value of an error that a host's function returned; `undefined` if it is another error. */
export function payloadOf(error) {
  const payload = error?.payload ?? error;
  return typeof payload?.tag === "string" ? payload : undefined;
}
