// Lets node import `.ts` files, also where node itself cannot: esbuild strips the types. For tests:
//
//   node --import millrace/typescript --test handler.test.ts

import { register } from "node:module";

register("./lib/strip-types.mjs", import.meta.url);
