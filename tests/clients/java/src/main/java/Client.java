// Clients of the matrix of clients and proxies (../run.py): Java's own HttpClient, OkHttp and Apache HttpClient 5. Reads commands from
// standard input, a JSON object a line, and answers each with a line: the id, and a status or what went wrong.

import com.google.gson.Gson;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;

public class Client {
    static class Command {
        String id, method, url, find;
        double sleep;
        Map<String, String> headers = new HashMap<>();
        int bytes;
        boolean chunked;

        byte[] body() {
            byte[] body = new byte[bytes];
            Arrays.fill(body, (byte) 'x');
            return body;
        }
    }

    record Answer(int status, String text) {}

    interface Asker {
        Answer ask(Command command) throws Exception;
    }

    static Asker java() {
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        return command -> {
            HttpRequest.BodyPublisher body = HttpRequest.BodyPublishers.noBody();
            if (command.bytes > 0) {
                byte[] bytes = command.body();
                body = command.chunked
                    ? HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes))
                    : HttpRequest.BodyPublishers.ofByteArray(bytes);
            }
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(command.url)).method(command.method, body);
            command.headers.forEach(request::header);
            HttpResponse<String> answer = client.send(request.build(), HttpResponse.BodyHandlers.ofString());
            return new Answer(answer.statusCode(), answer.body());
        };
    }

    static Asker okhttp() {
        okhttp3.OkHttpClient client = new okhttp3.OkHttpClient.Builder().readTimeout(java.time.Duration.ofSeconds(60)).build();
        return command -> {
            okhttp3.RequestBody body = null;
            if (command.bytes > 0) {
                byte[] bytes = command.body();
                okhttp3.MediaType type = okhttp3.MediaType.parse("application/octet-stream");
                body = new okhttp3.RequestBody() {
                    public okhttp3.MediaType contentType() { return type; }
                    public long contentLength() { return command.chunked ? -1 : bytes.length; }
                    public void writeTo(okio.BufferedSink sink) throws java.io.IOException { sink.write(bytes); }
                };
            } else if (command.method.equals("POST") || command.method.equals("PUT")) {
                body = okhttp3.RequestBody.create(new byte[0], null);
            }
            okhttp3.Request.Builder request = new okhttp3.Request.Builder().url(command.url).method(command.method, body);
            command.headers.forEach(request::header);
            try (okhttp3.Response answer = client.newCall(request.build()).execute()) {
                return new Answer(answer.code(), answer.body().string());
            }
        };
    }

    static Asker httpclient5() {
        org.apache.hc.client5.http.impl.classic.CloseableHttpClient client =
            org.apache.hc.client5.http.impl.classic.HttpClients.custom().disableAutomaticRetries().build();
        return command -> {
            var request = new org.apache.hc.client5.http.classic.methods.HttpUriRequestBase(command.method, URI.create(command.url));
            command.headers.forEach(request::setHeader);
            if (command.bytes > 0) {
                InputStream bytes = new ByteArrayInputStream(command.body());
                long length = command.chunked ? -1 : command.bytes;
                request.setEntity(new org.apache.hc.core5.http.io.entity.InputStreamEntity(bytes, length, null));
            }
            return client.execute(request, answer -> {
                var entity = answer.getEntity();
                String text = entity == null ? "" : org.apache.hc.core5.http.io.entity.EntityUtils.toString(entity);
                return new Answer(answer.getCode(), text);
            });
        };
    }

    public static void main(String[] arguments) throws Exception {
        Asker asker = switch (arguments[0]) {
            case "java" -> java();
            case "okhttp" -> okhttp();
            default -> httpclient5();
        };
        Gson gson = new Gson();
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            Command command = gson.fromJson(line, Command.class);
            if (command.sleep > 0) {
                Thread.sleep((long) (command.sleep * 1000));
                continue;
            }
            String said;
            try {
                Answer answer = asker.ask(command);
                said = String.valueOf(answer.status());
                if (command.find != null) said += " " + answer.text().contains(command.find);
            } catch (Exception error) {
                said = (error.getClass().getSimpleName() + " " + error.getMessage()).replace('\n', ' ');
            }
            System.out.println(command.id + "\t" + said);
            System.out.flush();
        }
        System.exit(0);
    }
}
