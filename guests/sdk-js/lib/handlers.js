// What a project exports: a handler and its kind. The component's entry and the Tester call it with columns.

import { answerOf, describe } from "./answer.js";
import { Batch, Message } from "./batch.js";
import { hasHost, hostOf, toWide } from "./host.js";
import { Unavailable, retry } from "./outcomes.js";
import { StateFull } from "./state.js";

/** A handler of one kind; `call` takes what the host passes and returns what it wants. */
export class Handler {
  constructor(kind, call) {
    this.kind = kind;
    this.call = call;
  }
}

export function processor(process) {
  return processBatch((batch) => {
    const outcomes = new Array(batch.length);
    for (let index = 0; index < outcomes.length; index++) {
      try {
        outcomes[index] = process(new Message(batch, index));
      } catch (error) {
        if (!(error instanceof StateFull)) throw error;
        outcomes[index] = retry("state-full", error.message);
      }
    }
    return outcomes;
  });
}

export function processBatch(process) {
  return new Handler("processor", (columns) => {
    const batch = new Batch(columns);
    return orSaid(() => {
      let outcomes;
      try {
        outcomes = process(batch);
      } catch (error) {
        if (!(error instanceof StateFull)) throw error;
        outcomes = new Array(batch.length).fill(retry("state-full", error.message));
      }
      return answerOf(batch, outcomes);
    });
  });
}

export function partitioner(choose) {
  return new Handler("partitioner", (partitions, columns) =>
    orSaid(() => {
      const batch = new Batch(columns);
      const chosen = new Uint32Array(batch.length);
      for (let index = 0; index < chosen.length; index++) {
        const partition = choose(new Message(batch, index), partitions);
        if (!(Number.isInteger(partition) && partition >= 0 && partition < partitions)) {
          throw new RangeError(`the partitioner returned ${partition}: return a whole number from 0 to ${partitions - 1}`);
        }
        chosen[index] = partition;
      }
      return chosen;
    }),
  );
}

export function errorHandler(decide) {
  return new Handler("error-handler", (failures, columns) =>
    orSaid(() => {
      const batch = new Batch(columns);
      return failures.map((facts) => {
        const decided = decide(failureOf(batch, facts));
        if (!DECISIONS.has(decided?.tag)) {
          throw new TypeError(`the error handler returned ${describe(decided)}: return one of decision.retryAfter(…), .deadLetter(), .drop(…), .policy()`);
        }
        return decided.tag === "retry-after" ? { tag: decided.tag, val: toWide(decided.val) } : decided;
      });
    }),
  );
}

const DECISIONS = new Set(["retry-after", "dead-letter", "drop", "policy"]);

function failureOf(batch, facts) {
  return {
    message: batch.message(facts.message),
    revision: facts.revision,
    attempt: facts.attempt,
    firstFailedAt: Number(facts.firstFailedAt),
    cause: facts.cause,
    class: facts.class,
    reason: facts.reason,
  };
}

/** A trap tells the host nothing but "unreachable", so an error that nobody caught is logged before it becomes one. */
export function orSaid(answer) {
  try {
    return answer();
  } catch (error) {
    if (!(error instanceof Unavailable) && hasHost("log")) hostOf("log").log("error", textOf(error));
    throw error;
  }
}

/** An error with its stack. Engines differ in whether the stack begins with the message. */
export function textOf(error) {
  if (!(error instanceof Error)) return String(error);
  const text = `${error.name}: ${error.message}`;
  const { stack } = error;
  if (!stack) return text;
  return stack.startsWith(text) ? stack.trimEnd() : `${text}\n${stack.trimEnd()}`;
}
