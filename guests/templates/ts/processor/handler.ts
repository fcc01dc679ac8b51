// Greets each name, and counts how often. The word of greeting is a setting.

import { config, emit, processor, reject, state } from "millrace";

export default processor((message) => {
  const name = message.text();
  if (name === null) return reject("no-value", "there is nobody to greet");
  const greeting = config.get("greeting") ?? "hello";
  const times = state.add(message, name);
  return emit(message.output({ value: `${greeting}, ${name}`, headers: { times: String(times) } }));
});
