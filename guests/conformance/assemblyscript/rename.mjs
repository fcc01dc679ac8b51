// A transform of asc: exports get the names of the contract, which AssemblyScript cannot spell.
import binaryen from "assemblyscript/binaryen";
import { Transform } from "assemblyscript/transform";

const NAMES = { process: "millrace:broker/message-processor@0.1.1#process" };

export default class extends Transform {
  afterCompile(module) {
    for (const [name, contractName] of Object.entries(NAMES)) {
      const { value } = binaryen.getExportInfo(module.getExport(name));
      module.removeExport(name);
      module.addFunctionExport(value, contractName);
    }
  }
}
