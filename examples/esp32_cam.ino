// An ESP32-CAM (AI Thinker) posts a frame each second. Needs the library ArduinoJson 7.
#include <ArduinoJson.h>
#include <WiFi.h>
#include <esp_camera.h>

#define HOST "10.0.0.5"  // the device that runs Lineside
#define PORT 8080
#define KEY "ls_..."  // python -m server key add esp32-1

void setup() {
  camera_config_t c = {.pin_pwdn = 32, .pin_reset = -1, .pin_xclk = 0, .pin_sccb_sda = 26,
    .pin_sccb_scl = 27, .pin_d7 = 35, .pin_d6 = 34, .pin_d5 = 39, .pin_d4 = 36, .pin_d3 = 21,
    .pin_d2 = 19, .pin_d1 = 18, .pin_d0 = 5, .pin_vsync = 25, .pin_href = 23, .pin_pclk = 22,
    .xclk_freq_hz = 20000000, .pixel_format = PIXFORMAT_JPEG, .frame_size = FRAMESIZE_SVGA,
    .jpeg_quality = 10, .fb_count = 2, .fb_location = CAMERA_FB_IN_PSRAM,
    .grab_mode = CAMERA_GRAB_LATEST};  // the newest frame, not one that waited in the buffer
  Serial.begin(115200);
  WiFi.begin("SSID", "PASSWORD");
  if (esp_camera_init(&c) != ESP_OK) ESP.restart();
}

void loop() {
  delay(1000);
  camera_fb_t *frame = esp_camera_fb_get();
  WiFiClient client;
  JsonDocument answer;
  if (frame && client.connect(HOST, PORT)) {
    client.print("POST /v1/recognize?camera=esp32-1 HTTP/1.1\r\nHost: " HOST "\r\n");
    client.print("Connection: close\r\nContent-Type: image/jpeg\r\nX-API-Key: " KEY "\r\n");
    client.print("Content-Length: " + String(frame->len) + "\r\n\r\n");
    client.write(frame->buf, frame->len);
    client.setTimeout(5000);
    if (client.find("\r\n\r\n")) deserializeJson(answer, client);
  }
  if (frame) esp_camera_fb_return(frame);
  Serial.println(answer["verdict"] | "no verdict");  // without one, the part is not good
}
