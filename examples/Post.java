// Post one JPEG, with Java 11 or later: LINESIDE_KEY=ls_... java Post.java http://DEVICE:8080 photo.jpg
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Path;
import java.time.Duration;

class Post {
    public static void main(String[] args) throws Exception {
        String key = System.getenv().getOrDefault("LINESIDE_KEY", "");
        HttpRequest request = HttpRequest.newBuilder(URI.create(args[0] + "/v1/recognize?camera=st4"))
            .header("Content-Type", "image/jpeg")
            .header("X-API-Key", key)
            .timeout(Duration.ofSeconds(10))
            .POST(HttpRequest.BodyPublishers.ofFile(Path.of(args[1])))
            .build();
        HttpClient client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
        HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
        System.out.println(response.body());
        if (response.statusCode() != 200) System.exit(1);
    }
}
