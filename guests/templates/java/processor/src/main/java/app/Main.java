package app;

import millrace.Config;
import millrace.Message;
import millrace.Millrace;
import millrace.Outcome;
import millrace.State;

/** Greets whoever a message names, and counts in state how often. */
public final class Main {
    private Main() {
    }

    public static void main(String[] arguments) {
        Millrace.processor(Main::greet);
    }

    private static Outcome greet(Message message) {
        byte[] name = message.value();
        if (name == null) {
            return Outcome.reject("no-value", "there is nobody to greet");
        }
        long times = State.add(message, name, 1);
        String greeting = Config.get("greeting", "hello") + ", " + message.text();
        return Outcome.emit(message.output().value(greeting).header("times", Long.toString(times)));
    }
}
